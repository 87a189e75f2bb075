//! A command elsewhere, whoever runs it.

use bytes::Bytes;
use wrenn_core::guest::{ProcessEvent, PtySize, Signal};

/// A running command, as a terminal needs it.
pub trait Remote {
    /// Its standard input or terminal.
    type Input: RemoteInput + 'static;

    /// The writing end of its input. Asked for once.
    fn input(&mut self) -> Self::Input;

    /// The next thing that it tells. Nothing is lost when the future is dropped. A command
    /// that its time-out killed says `deadline` in the error of its exit.
    fn next(&mut self) -> impl Future<Output = anyhow::Result<ProcessEvent>>;

    /// Sends a signal to its process group.
    fn signal(&self, signal: Signal) -> impl Future<Output = anyhow::Result<()>>;

    /// Tells its terminal a new size.
    fn resize(&self, size: PtySize) -> impl Future<Output = anyhow::Result<()>>;
}

/// Where a command's input is written to.
pub trait RemoteInput: Send {
    /// Writes all of `bytes`; waits while the command does not read.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Ends the input.
    fn close(self) -> impl Future<Output = anyhow::Result<()>> + Send;
}
