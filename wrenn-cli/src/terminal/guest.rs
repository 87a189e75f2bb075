//! A command in a guest that we reach ourselves.

use bytes::Bytes;
use wrenn_core::guest::{
    Command, ExitStatus, GuestClient, GuestProcess, ProcessEvent, ProcessInput, PtySize, RpcCode,
    Signal as GuestSignal,
};
use wrenn_proto::buffa::Enumeration as _;
use wrenn_sdk::{Signal, TerminalSize};

use super::{Attach, Event, Exit, Remote, RemoteInput, terminal_size};

/// The command with what `attach` gives it.
pub(super) fn attached(command: Command, attach: Attach) -> Command {
    let mut command = command;
    if attach.stdin || attach.tty {
        command = command.with_stdin();
    }
    if attach.tty {
        command = command.pty(pty_size(terminal_size()));
    }
    if let Some(timeout) = attach.timeout {
        command = command.timeout(timeout);
    }
    command
}

fn pty_size(size: TerminalSize) -> PtySize {
    PtySize {
        cols: size.cols,
        rows: size.rows,
    }
}

impl From<ProcessEvent> for Event {
    fn from(event: ProcessEvent) -> Self {
        match event {
            ProcessEvent::Stdout(bytes) | ProcessEvent::Pty(bytes) => Self::Stdout(bytes),
            ProcessEvent::Stderr(bytes) => Self::Stderr(bytes),
            ProcessEvent::Exit(status) => Self::Exit(status.into()),
        }
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Self {
            code: status.shell_code(),
            timed_out: status.timed_out,
            message: None,
        }
    }
}

pub(super) struct GuestCommand {
    client: GuestClient,
    process: GuestProcess,
}

impl GuestCommand {
    pub(super) fn new(client: GuestClient, process: GuestProcess) -> Self {
        Self { client, process }
    }
}

impl Remote for GuestCommand {
    type Input = ProcessInput;

    fn input(&mut self) -> ProcessInput {
        self.process.input()
    }

    async fn next(&mut self) -> anyhow::Result<Event> {
        match self.process.next().await {
            Err(error) if error.code() == Some(RpcCode::DeadlineExceeded) => {
                Ok(Event::Exit(ExitStatus::killed_by_timeout().into()))
            }
            next => Ok(next?.into()),
        }
    }

    async fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let number = i32::try_from(signal.number())?;
        if let Some(signal) = GuestSignal::from_i32(number) {
            self.client.signal(self.process.pid(), signal).await?;
        }
        Ok(())
    }

    async fn resize(&self, size: TerminalSize) -> anyhow::Result<()> {
        let size = pty_size(size);
        Ok(self.client.resize(self.process.pid(), size).await?)
    }
}

impl RemoteInput for ProcessInput {
    async fn write(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        Ok(Self::write(self, bytes).await?)
    }

    async fn close(self) -> anyhow::Result<()> {
        Ok(Self::close(self).await?)
    }
}
