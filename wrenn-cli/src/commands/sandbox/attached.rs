//! A command of the server's, with this program's streams and terminal.

use bytes::Bytes;
use wrenn_sdk::{Process, ProcessEvent, Signal, Stdin, TerminalSize};

use crate::terminal::{Event, Exit, Remote, RemoteInput};

/// A command in a sandbox, as a terminal needs it.
pub(super) struct AttachedProcess(Process);

impl AttachedProcess {
    pub(super) const fn new(process: Process) -> Self {
        Self(process)
    }
}

/// Whether the message says why a command was not found, or is no program. A shell that ends
/// with these codes has said so itself.
fn tells_more(code: i32, message: &str) -> bool {
    matches!(code, 126 | 127) && !message.starts_with("exit status")
}

/// Its input; none where the command was started without.
pub(super) struct AttachedInput(Option<Stdin>);

impl Remote for AttachedProcess {
    type Input = AttachedInput;

    fn input(&mut self) -> AttachedInput {
        AttachedInput(self.0.take_stdin())
    }

    async fn next(&mut self) -> anyhow::Result<Event> {
        loop {
            return Ok(match self.0.next().await? {
                Some(ProcessEvent::Stdout(bytes) | ProcessEvent::Tty(bytes)) => {
                    Event::Stdout(bytes)
                }
                Some(ProcessEvent::Stderr(bytes)) => Event::Stderr(bytes),
                Some(ProcessEvent::Exit(status)) => Event::Exit(Exit {
                    code: u8::try_from(status.code & 0xff).unwrap_or(1),
                    timed_out: status.timed_out,
                    message: status.message.filter(|said| tells_more(status.code, said)),
                }),
                Some(_) => continue,
                None => anyhow::bail!("the command has ended before"),
            });
        }
    }

    async fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(self.0.signal(signal).await?)
    }

    async fn resize(&self, size: TerminalSize) -> anyhow::Result<()> {
        self.0.resize(size);
        Ok(())
    }
}

impl RemoteInput for AttachedInput {
    async fn write(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        match &mut self.0 {
            Some(stdin) => Ok(stdin.write(bytes).await?),
            None => Ok(()),
        }
    }

    async fn close(self) -> anyhow::Result<()> {
        match self.0 {
            Some(stdin) => Ok(stdin.close().await?),
            None => Ok(()),
        }
    }
}
