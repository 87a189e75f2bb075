//! A command elsewhere, whoever runs it.

use bytes::Bytes;
use wrenn_sdk::{Signal, TerminalSize};

/// Something that a command tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of standard output, or of its terminal.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// It has ended. The last event.
    Exit(Exit),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell says it: the exit code, or 128 and the signal's number.
    pub code: u8,
    /// Whether its time-out killed it.
    pub timed_out: bool,
    /// A sentence where the code does not tell.
    pub message: Option<String>,
}

/// A running command, as a terminal needs it.
pub trait Remote {
    /// Its standard input or terminal.
    type Input: RemoteInput + 'static;

    /// The writing end of its input. Asked for once.
    fn input(&mut self) -> Self::Input;

    /// The next thing that it tells. No event is lost when the future is dropped.
    fn next(&mut self) -> impl Future<Output = anyhow::Result<Event>>;

    /// Sends a signal to its process group.
    fn signal(&self, signal: Signal) -> impl Future<Output = anyhow::Result<()>>;

    /// Tells its terminal a new size.
    fn resize(&self, size: TerminalSize) -> impl Future<Output = anyhow::Result<()>>;
}

/// Where a command's input is written to.
pub trait RemoteInput: Send {
    /// Writes all of `bytes`; waits while the command does not read.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Ends the input.
    fn close(self) -> impl Future<Output = anyhow::Result<()>> + Send;
}
