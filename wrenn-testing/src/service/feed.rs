//! What a caller sends to a command that it follows: input, its end, sizes of its terminal.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::__buffa::oneof::{connect_process_request, exec_stream_request};
use wrenn_proto::process::__buffa::oneof::process_selector::Selector;
use wrenn_proto::process::{PTY, ProcessSelector, UpdateRequest};

use super::input::terminal_size;
use crate::errors::invalid;
use crate::guest::{Client, Input};

/// One message of a caller, after the first.
#[derive(Debug)]
pub(super) enum ClientMessage {
    Input(Bytes),
    Resize(PTY),
    Close,
}

impl ClientMessage {
    /// Reads a message; `None` is one of a newer caller.
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

/// Passes messages on until they end. What the command does not take is dropped: it may have
/// ended.
pub(super) async fn feed(
    client: Client,
    pid: u32,
    terminal: bool,
    messages: impl Stream<Item = Result<Option<ClientMessage>, ConnectError>> + Send,
) -> Result<(), ConnectError> {
    let mut messages = std::pin::pin!(messages);
    let mut input = None;
    let mut taken = true;
    while let Some(message) = messages.next().await {
        let done = match message? {
            Some(ClientMessage::Input(bytes)) if taken => {
                let input = input.get_or_insert_with(|| Input::open(client.clone(), pid, terminal));
                let written = input.write(bytes).await;
                taken = written.is_ok();
                written
            }
            Some(ClientMessage::Close) if taken => {
                taken = false;
                let open: Option<Input> = input.take();
                open.unwrap_or_else(|| Input::open(client.clone(), pid, terminal))
                    .close()
                    .await
            }
            Some(ClientMessage::Resize(size)) => {
                let process = ProcessSelector {
                    selector: Some(Selector::Pid(pid)),
                };
                let request = UpdateRequest {
                    process: process.into(),
                    pty: size.into(),
                };
                client.update(request).await
            }
            Some(ClientMessage::Input(_) | ClientMessage::Close) | None => Ok(()),
        };
        if let Err(error) = done {
            tracing::debug!(pid, %error, "dropped a message to a command");
        }
    }
    Ok(())
}
