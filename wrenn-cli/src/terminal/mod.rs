//! Joins this program's standard streams, signals and terminal to a command elsewhere:
//! in a sandbox, in the machine, or behind an agent. [`Remote`] is what it needs of it.
//!
//! ```text
//!  stdin ──▶ RemoteInput ──▶ command           (waits while the command does not read)
//!  stdout, stderr ◀── Event ── command         (the command waits while we cannot write)
//!  SIGINT, SIGTERM, SIGHUP, SIGQUIT ─────▶ its process group
//!  SIGWINCH ─────▶ size of its terminal
//! ```
//!
//! A second SIGINT or SIGTERM ends this program at once, whatever the command does.

#[cfg(feature = "host")]
mod guest;
mod raw;
mod remote;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Stdin};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::Notify;
use tracing::debug;
#[cfg(feature = "host")]
use wrenn_core::guest::{Command, GuestClient};
use wrenn_sdk::Signal;

#[cfg(feature = "host")]
use guest::GuestCommand;
use raw::RawMode;
pub use raw::{is_terminal, terminal_size};
pub use remote::{Event, Exit, Remote, RemoteInput};

use crate::escape;

/// Exit code of a command that its time-out ended, as `timeout` of coreutils has it.
const TIMED_OUT: u8 = 124;
/// Exit code where nobody reads what the command prints: 128 and SIGPIPE.
const BROKEN_PIPE: u8 = 128 + 13;
const CHUNK_BYTES: usize = 64 * 1024;

/// Which of this program's streams the command gets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attach {
    /// Standard input is passed on.
    pub stdin: bool,
    /// The command has a terminal of its own, and ours becomes a plain pipe to it.
    pub tty: bool,
    /// The time-out that the command was started with, for the message.
    pub timeout: Option<Duration>,
}

/// Starts `command` and stays with it to its end. Returns its exit code.
///
/// # Errors
/// When it cannot be started, or the connection to it breaks.
#[cfg(feature = "host")]
pub async fn run(
    client: &GuestClient,
    command: Command,
    attach: Attach,
) -> anyhow::Result<ExitCode> {
    let command = guest::attached(command, attach);
    let start = async {
        let process = client.start(&command).await?;
        Ok(GuestCommand::new(client.clone(), process))
    };
    run_remote(start, attach).await
}

/// Starts a command by `start` and stays with it to its end. Returns its exit code.
///
/// # Errors
/// When it cannot be started, or the connection to it breaks.
pub async fn run_remote<R: Remote>(
    start: impl Future<Output = anyhow::Result<R>>,
    attach: Attach,
) -> anyhow::Result<ExitCode> {
    // Listening starts before the command does, so that no early signal is missed.
    let mut signals = Signals::listen()?;
    let mut early = None;
    let mut start = std::pin::pin!(start);
    let remote = loop {
        tokio::select! {
            started = &mut start => break started?,
            received = signals.next_to_end() => {
                if early.is_some() {
                    return Ok(left(received));
                }
                early = Some(received);
            }
        }
    };
    stay(remote, signals, early, attach).await
}

async fn stay<R: Remote>(
    mut remote: R,
    mut signals: Signals,
    early: Option<Received>,
    attach: Attach,
) -> anyhow::Result<ExitCode> {
    let raw = if attach.tty && is_terminal() {
        Some(RawMode::enter()?)
    } else {
        None
    };
    let stuck = Arc::new(Notify::new());
    let input = (attach.stdin || attach.tty).then(|| {
        let stuck = attach.tty.then(|| Arc::clone(&stuck));
        tokio::spawn(pump(remote.input(), stuck))
    });
    let outcome = tokio::select! {
        outcome = converse(&mut remote, &mut signals, early, attach) => outcome,
        () = stuck.notified() => Ok(left(Received::Forward(Signal::INT))),
    };
    if let Some(input) = input {
        input.abort();
    }
    drop(raw);
    outcome
}

async fn converse(
    remote: &mut impl Remote,
    signals: &mut Signals,
    early: Option<Received>,
    attach: Attach,
) -> anyhow::Result<ExitCode> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut asked_to_end = early.is_some();
    if let Some(received) = early {
        deliver(remote, received, attach.tty).await;
    }
    loop {
        let event = tokio::select! {
            event = remote.next() => event?,
            received = signals.next() => {
                if asks_to_end(received) {
                    if asked_to_end {
                        return Ok(left(received));
                    }
                    asked_to_end = true;
                }
                // A signal that cannot be delivered must not stand in the way of the next.
                tokio::select! {
                    () = deliver(remote, received, attach.tty) => {}
                    again = signals.next_to_end(), if asked_to_end => return Ok(left(again)),
                }
                continue;
            }
        };
        let written = match event {
            Event::Stdout(bytes) => show(&mut stdout, &bytes).await,
            Event::Stderr(bytes) => show(&mut stderr, &bytes).await,
            Event::Exit(exit) => return Ok(exit_code(&exit, attach)),
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                // Whoever read has left, as `head` does: the command has no more to say.
                if let Err(error) = remote.signal(Signal::KILL).await {
                    debug!(%error, "the command ended by itself");
                }
                return Ok(ExitCode::from(BROKEN_PIPE));
            }
            Err(error) => {
                return Err(anyhow::Error::new(error).context("cannot write the command's output"));
            }
        }
    }
}

const fn asks_to_end(received: Received) -> bool {
    matches!(received, Received::Forward(Signal::INT | Signal::TERM))
}

/// The exit code of a program that a signal ended.
fn left(received: Received) -> ExitCode {
    let number = match received {
        Received::Forward(signal) => u8::try_from(signal.number()).unwrap_or_default(),
        Received::Resized => 0,
    };
    eprintln!("wrenn: left the command, which may go on");
    ExitCode::from(128 + number)
}

fn exit_code(exit: &Exit, attach: Attach) -> ExitCode {
    if attach.timeout.is_some() && exit.timed_out {
        eprintln!("wrenn: {}", timed_out(attach));
        return ExitCode::from(TIMED_OUT);
    }
    if let Some(message) = &exit.message {
        eprintln!("wrenn: {}", escape::line(message));
    }
    ExitCode::from(exit.code)
}

fn timed_out(attach: Attach) -> String {
    let timeout = attach.timeout.unwrap_or_default();
    format!(
        "the command was ended after {}",
        humantime::format_duration(timeout)
    )
}

async fn show(stream: &mut (impl AsyncWrite + Unpin), bytes: &Bytes) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Copies standard input to the command until either ends.
///
/// At a terminal every key goes to the command, Ctrl-C too. `stuck` is told when Ctrl-C is
/// pressed twice while the command, or the way to it, takes no more keys.
async fn pump(mut input: impl RemoteInput, stuck: Option<Arc<Notify>>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
    let outcome = loop {
        buffer.reserve(CHUNK_BYTES);
        if buffer.is_empty() {
            match stdin.read_buf(&mut buffer).await {
                Ok(0) => break input.close().await,
                Ok(_) => {}
                Err(error) => {
                    eprintln!("wrenn: cannot read standard input: {error}");
                    break input.close().await;
                }
            }
        }
        let chunk = buffer.split().freeze();
        let written = match &stuck {
            None => input.write(chunk).await,
            Some(stuck) => write_keys(&mut input, chunk, &mut stdin, &mut buffer, stuck).await,
        };
        if let Err(error) = written {
            break Err(error);
        }
    };
    if let Err(error) = outcome {
        // A command may end without reading what it is given, as `head` does.
        debug!(%error, "the command reads no more");
    }
}

/// Writes keys, and reads more of them meanwhile into `waiting`.
async fn write_keys(
    input: &mut impl RemoteInput,
    keys: Bytes,
    stdin: &mut Stdin,
    waiting: &mut BytesMut,
    stuck: &Notify,
) -> anyhow::Result<()> {
    const CTRL_C: u8 = 3;
    let mut write = std::pin::pin!(input.write(keys));
    loop {
        tokio::select! {
            written = &mut write => return written,
            read = stdin.read_buf(waiting), if waiting.len() < CHUNK_BYTES => {
                if read? == 0 {
                    // The end is found again once this is written.
                    return write.await;
                }
                if waiting.iter().filter(|key| **key == CTRL_C).count() >= 2 {
                    stuck.notify_one();
                }
            }
        }
    }
}

/// What a signal to this program means for the command.
#[derive(Clone, Copy, Debug)]
enum Received {
    Forward(Signal),
    Resized,
}

struct Signals {
    interrupt: SignalStream,
    terminate: SignalStream,
    hangup: SignalStream,
    quit: SignalStream,
    resized: SignalStream,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resized: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received::Forward(Signal::INT),
            _ = self.terminate.recv() => Received::Forward(Signal::TERM),
            _ = self.hangup.recv() => Received::Forward(Signal::HUP),
            _ = self.quit.recv() => Received::Forward(Signal::QUIT),
            _ = self.resized.recv() => Received::Resized,
        }
    }

    /// The next signal that asks this program to end.
    async fn next_to_end(&mut self) -> Received {
        loop {
            let received = self.next().await;
            if asks_to_end(received) {
                return received;
            }
        }
    }
}

async fn deliver(remote: &impl Remote, received: Received, tty: bool) {
    let delivered = match received {
        Received::Forward(signal) => remote.signal(signal).await,
        Received::Resized if tty => remote.resize(terminal_size()).await,
        Received::Resized => return,
    };
    if let Err(error) = delivered {
        debug!(%error, ?received, "the command is past signals");
    }
}
