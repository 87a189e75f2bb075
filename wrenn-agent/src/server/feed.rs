//! What a caller sends to a command that it follows: input, its end, sizes of its terminal.
//!
//! It runs on a task of its own. A caller that does not read what the command prints stops
//! the command's output, and must still be able to send it a Ctrl-C.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tracing::debug;
use wrenn_core::guest::{GuestClient, PtySize};
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::__buffa::oneof::{connect_process_request, exec_stream_request};

use super::input::terminal_size;
use crate::errors::invalid;

/// One message up, after the first.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Upward {
    Input(Bytes),
    Resize(PtySize),
    Close,
}

impl Upward {
    /// Reads a message; `None` is one of a newer caller, which means nothing to us.
    pub(super) fn of_exec(
        message: Option<exec_stream_request::Message>,
    ) -> Result<Option<Self>, ConnectError> {
        use exec_stream_request::Message;
        Ok(Some(match message {
            Some(Message::Input(bytes)) => Self::Input(bytes),
            Some(Message::Resize(size)) => Self::Resize(terminal_size(&size)?),
            Some(Message::CloseInput(_)) => Self::Close,
            Some(Message::Start(_)) => return Err(begun()),
            None => return Ok(None),
        }))
    }

    /// The same for a command that was joined.
    pub(super) fn of_connect(
        message: Option<connect_process_request::Message>,
    ) -> Result<Option<Self>, ConnectError> {
        use connect_process_request::Message;
        Ok(Some(match message {
            Some(Message::Input(bytes)) => Self::Input(bytes),
            Some(Message::Resize(size)) => Self::Resize(terminal_size(&size)?),
            Some(Message::CloseInput(_)) => Self::Close,
            Some(Message::Connect(_)) => return Err(begun()),
            None => return Ok(None),
        }))
    }
}

fn begun() -> ConnectError {
    invalid("only the first message says which command it is about")
}

/// Passes messages on until they end. What the command does not take is dropped: it may
/// have ended, or closed its input, and that is no failure of whoever follows it.
///
/// # Errors
/// When a message makes no sense.
pub(super) async fn feed(
    guest: GuestClient,
    pid: u32,
    terminal: bool,
    messages: impl Stream<Item = Result<Option<Upward>, ConnectError>> + Send,
) -> Result<(), ConnectError> {
    let mut messages = std::pin::pin!(messages);
    let mut input = None;
    let mut taken = true;
    while let Some(message) = messages.next().await {
        let done = match message? {
            Some(Upward::Input(bytes)) if taken => {
                let input = input.get_or_insert_with(|| guest.input(pid, terminal));
                let written = input.write(bytes).await;
                taken = written.is_ok();
                written
            }
            Some(Upward::Close) if taken => {
                taken = false;
                let open = input.take();
                open.unwrap_or_else(|| guest.input(pid, terminal))
                    .close()
                    .await
            }
            Some(Upward::Resize(size)) => guest.resize(pid, size).await,
            Some(Upward::Input(_) | Upward::Close) | None => Ok(()),
        };
        if let Err(error) = done {
            debug!(pid, %error, "the command takes no more");
        }
    }
    Ok(())
}
