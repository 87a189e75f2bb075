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
//! After SIGTERM and SIGHUP the command has [`END_GRACE`]; then this program leaves it and ends. A
//! second SIGINT or SIGTERM ends this program at once, whatever the command does. The end of our
//! terminal counts as a SIGHUP. A command at a terminal gets a SIGHUP after a SIGTERM, because
//! interactive shells ignore that.

#[cfg(feature = "host")]
mod guest;
mod raw;
mod remote;
mod signals;

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Stderr, Stdin, Stdout};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::debug;
#[cfg(feature = "host")]
use wrenn_core::guest::{Command, GuestClient};
use wrenn_sdk::Signal;

#[cfg(feature = "host")]
use guest::GuestCommand;
use raw::RawMode;
pub use raw::{is_terminal, terminal_size};
pub use remote::{Event, Exit, Remote, RemoteInput};
#[cfg(feature = "host")]
pub(crate) use signals::Hangup;
pub use signals::{Received, Signals};

use crate::broken_pipe::is_reader_gone;
use crate::commands::UsageError;
use crate::escape;

/// Exit code of a command that its time-out ended, as `timeout` of coreutils has it.
const TIMED_OUT: u8 = 124;
/// Exit code where nobody reads what the command prints: 128 and SIGPIPE.
const BROKEN_PIPE: u8 = 128 + 13;
const CHUNK_BYTES: usize = 64 * 1024;
/// How long a command may go on after it was asked to end; docker stop waits as long.
pub const END_GRACE: Duration = Duration::from_secs(10);

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

impl Attach {
    /// Refuses a terminal for the command where we have none to show it at, as docker does: the
    /// end of another input would not end a command that reads a terminal.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn check(self) -> Result<(), UsageError> {
        if self.tty && !is_terminal() {
            return Err(UsageError(
                "-t needs a terminal as standard input; -i alone passes other input on".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Starts `command` and stays with it to its end. Returns its exit code.
///
/// # Errors
/// When it cannot be started, or the connection to it breaks.
#[cfg(feature = "host")]
pub async fn run(
    signals: Signals,
    client: &GuestClient,
    command: Command,
    attach: Attach,
) -> anyhow::Result<ExitCode> {
    let command = guest::attached(command, attach);
    let start = async {
        let process = client.start(&command).await?;
        Ok(GuestCommand::new(client.clone(), process))
    };
    run_remote(signals, start, attach).await
}

/// Starts a command by `start` and stays with it to its end. Returns its exit code.
///
/// # Errors
/// When it cannot be started, or the connection to it breaks.
pub async fn run_remote<R: Remote>(
    mut signals: Signals,
    start: impl Future<Output = anyhow::Result<R>>,
    attach: Attach,
) -> anyhow::Result<ExitCode> {
    let mut early = None;
    let mut start = std::pin::pin!(start);
    let remote = loop {
        tokio::select! {
            started = &mut start => break started?,
            received = signals.next_to_end() => {
                if early.is_some() && received.insists() {
                    return Ok(left(received));
                }
                early = early.or(Some(received));
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
        let terminal = attach.tty.then(|| OurTerminal {
            stuck: Arc::clone(&stuck),
            gone: Arc::clone(&signals.terminal_gone),
        });
        tokio::spawn(pump(remote.input(), terminal))
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
    let mut ending = Ending::default();
    if let Some(received) = early {
        ending.note(received);
        deliver(remote, received, attach.tty).await;
    }
    loop {
        let event = tokio::select! {
            event = remote.next() => event?,
            received = ending.due() => return Ok(left(received)),
            received = signals.next() => {
                if let Some(code) = ending.pass_on(remote, signals, received, attach.tty).await {
                    return Ok(code);
                }
                continue;
            }
        };
        if let Event::Exit(exit) = event {
            return Ok(exit_code(&exit, attach));
        }
        let mut showing = std::pin::pin!(show(&mut stdout, &mut stderr, event));
        let shown = loop {
            // A reader that takes nothing must not keep this program from ending.
            tokio::select! {
                shown = &mut showing => break shown,
                received = ending.due() => return Ok(left(received)),
                received = signals.next() => {
                    if let Some(code) = ending.pass_on(remote, signals, received, attach.tty).await {
                        return Ok(code);
                    }
                }
            }
        };
        match shown {
            Ok(()) => {}
            Err(ShowError {
                is_reader_gone: true,
                ..
            }) => {
                // Whoever read has left, as `head` does: the command has no more to say.
                if let Err(error) = remote.signal(Signal::KILL).await {
                    debug!(%error, "the command ended by itself");
                }
                return Ok(ExitCode::from(BROKEN_PIPE));
            }
            Err(ShowError { source, .. }) => {
                return Err(anyhow::Error::new(source).context("cannot write the command's output"));
            }
        }
    }
}

/// Whether this program was asked to end, and until when it waits for the command.
#[derive(Default)]
struct Ending {
    is_asked: bool,
    due: Option<(Instant, Received)>,
}

impl Ending {
    fn note(&mut self, received: Received) {
        self.is_asked |= received.asks_to_end();
        if received.ends_in_time() && self.due.is_none() {
            self.due = Some((Instant::now() + END_GRACE, received));
        }
    }

    /// Passes a signal on to the command, unless it or another that comes meanwhile says that
    /// this program is to end at once: then with this code.
    async fn pass_on(
        &mut self,
        remote: &impl Remote,
        signals: &mut Signals,
        received: Received,
        tty: bool,
    ) -> Option<ExitCode> {
        if self.is_asked && received.insists() {
            return Some(left(received));
        }
        self.note(received);
        // A signal that cannot be delivered must not stand in the way of the next.
        tokio::select! {
            () = deliver(remote, received, tty) => None,
            again = signals.next_to_insist(), if self.is_asked => Some(left(again)),
            received = self.due() => Some(left(received)),
        }
    }

    /// Waits until this program waits no longer, and gives the signal that asked for it.
    async fn due(&self) -> Received {
        match self.due {
            Some((time, received)) => {
                sleep_until(time).await;
                received
            }
            None => std::future::pending().await,
        }
    }
}

/// The exit code of a program that a signal ended.
fn left(received: Received) -> ExitCode {
    drop_eprintln!("wrenn: left the command, which may go on");
    received.exit_code()
}

fn exit_code(exit: &Exit, attach: Attach) -> ExitCode {
    if attach.timeout.is_some() && exit.timed_out {
        drop_eprintln!("wrenn: {}", timed_out(attach));
        return ExitCode::from(TIMED_OUT);
    }
    if let Some(message) = &exit.message {
        drop_eprintln!("wrenn: {}", escape::line(message));
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

/// Output of the command was not written.
struct ShowError {
    is_reader_gone: bool,
    source: io::Error,
}

async fn show(stdout: &mut Stdout, stderr: &mut Stderr, event: Event) -> Result<(), ShowError> {
    async fn write(
        stream: &mut (impl AsyncWrite + AsFd + Unpin),
        bytes: &Bytes,
    ) -> Result<(), ShowError> {
        let written = match stream.write_all(bytes).await {
            Ok(()) => stream.flush().await,
            failed => failed,
        };
        written.map_err(|source| ShowError {
            is_reader_gone: is_reader_gone(&source, stream),
            source,
        })
    }
    match event {
        Event::Stdout(bytes) => write(stdout, &bytes).await,
        Event::Stderr(bytes) => write(stderr, &bytes).await,
        Event::Exit(_) => Ok(()),
    }
}

/// Events of our terminal.
struct OurTerminal {
    /// Ctrl-C was pressed twice while the command, or the way to it, takes no more keys.
    stuck: Arc<Notify>,
    /// It was closed.
    gone: Arc<Notify>,
}

/// Copies standard input to the command until either ends.
///
/// At a terminal every key goes to the command, Ctrl-C too.
async fn pump(mut input: impl RemoteInput, terminal: Option<OurTerminal>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
    let outcome = loop {
        buffer.reserve(CHUNK_BYTES);
        if buffer.is_empty() {
            match (stdin.read_buf(&mut buffer).await, &terminal) {
                (Ok(1..), _) => {}
                // No key ends a terminal whose keys all go to the command.
                (_, Some(terminal)) => return terminal.gone.notify_one(),
                (Ok(0), None) => break input.close().await,
                (Err(error), None) => {
                    drop_eprintln!("wrenn: cannot read standard input: {error}");
                    break input.close().await;
                }
            }
        }
        let chunk = buffer.split().freeze();
        let written = match &terminal {
            None => input.write(chunk).await,
            Some(terminal) => {
                write_keys(&mut input, chunk, &mut stdin, &mut buffer, terminal).await
            }
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
    terminal: &OurTerminal,
) -> anyhow::Result<()> {
    const CTRL_C: u8 = 3;
    let mut write = std::pin::pin!(input.write(keys));
    loop {
        tokio::select! {
            written = &mut write => return written,
            read = stdin.read_buf(waiting), if waiting.len() < CHUNK_BYTES => {
                if !matches!(read, Ok(1..)) {
                    terminal.gone.notify_one();
                    return write.await;
                }
                if waiting.iter().filter(|key| **key == CTRL_C).count() >= 2 {
                    terminal.stuck.notify_one();
                }
            }
        }
    }
}

async fn deliver(remote: &impl Remote, received: Received, tty: bool) {
    let delivered = match received {
        Received::Forward(signal) => {
            let delivered = remote.signal(signal).await;
            if tty && signal == Signal::TERM && delivered.is_ok() {
                remote.signal(Signal::HUP).await
            } else {
                delivered
            }
        }
        Received::Resized if tty => remote.resize(terminal_size()).await,
        Received::Resized => return,
    };
    if let Err(error) = delivered {
        debug!(%error, ?received, "the command is past signals");
    }
}
