//! Writing to a command's standard input or terminal.

use bytes::Bytes;
use futures::SinkExt;
use futures::channel::mpsc;
use tokio::task::JoinHandle;
use wrenn_proto::buffa::MessageField;
use wrenn_proto::process::__buffa::oneof::process_input::Input;
use wrenn_proto::process::__buffa::oneof::stream_input_request::Event;
use wrenn_proto::process::stream_input_request::{DataEvent, StartEvent};
use wrenn_proto::process::{CloseStdinRequest, ProcessInput as InputMessage, StreamInputRequest};

use super::process::by_pid;
use super::{GuestClient, GuestError};

/// Chunks on their way. More would only hide how fast the command reads.
const IN_FLIGHT: usize = 4;
/// The largest chunk that is sent as one message.
const MAX_CHUNK: usize = 64 * 1024;
const WHAT: &str = "writing to a command";

/// The writing end of a command's standard input. Writing waits while the command does
/// not read. Dropping it leaves the input open; [`ProcessInput::close`] ends it.
#[derive(Debug)]
pub struct ProcessInput {
    client: GuestClient,
    pid: u32,
    pty: bool,
    sender: mpsc::Sender<StreamInputRequest>,
    stream: JoinHandle<Result<(), GuestError>>,
}

impl ProcessInput {
    pub(super) fn open(client: GuestClient, pid: u32, pty: bool) -> Self {
        let (mut sender, receiver) = mpsc::channel(IN_FLIGHT);
        let start = StartEvent {
            process: by_pid(pid).into(),
        };
        // The channel is empty and open, so there is room for the first message.
        let _queued = sender.try_send(request(start));
        let processes = client.processes.clone();
        let stream = tokio::spawn(async move {
            processes
                .stream_input(receiver)
                .await
                .map(drop)
                .map_err(GuestError::rpc(WHAT))
        });
        Self {
            client,
            pid,
            pty,
            sender,
            stream,
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// When the command has ended or closed its input.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), GuestError> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
            let input = if self.pty {
                Input::Pty(chunk)
            } else {
                Input::Stdin(chunk)
            };
            let input = InputMessage { input: Some(input) };
            let data = DataEvent {
                input: MessageField::some(input),
            };
            if self.sender.send(request(data)).await.is_err() {
                return Err(self.failure().await);
            }
        }
        Ok(())
    }

    /// Waits until everything is written, and ends the command's standard input. For a
    /// terminal this only ends the writing: its end of input is a character, Ctrl-D.
    ///
    /// # Errors
    /// When something written before could not be delivered.
    pub async fn close(mut self) -> Result<(), GuestError> {
        self.sender.close_channel();
        match (&mut self.stream).await {
            Ok(delivered) => delivered?,
            Err(error) => return Err(GuestError::transport(WHAT, error)),
        }
        if self.pty {
            return Ok(());
        }
        let request = CloseStdinRequest {
            process: by_pid(self.pid).into(),
        };
        let closed = self.client.processes.close_stdin(request).await;
        closed
            .map(drop)
            .map_err(GuestError::rpc("closing a command's input"))
    }

    /// Why the stream ended, once it has.
    async fn failure(&mut self) -> GuestError {
        match (&mut self.stream).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => GuestError::Protocol {
                what: WHAT,
                reason: "the daemon ended the stream".to_owned(),
            },
            Err(error) => GuestError::transport(WHAT, error),
        }
    }
}

fn request(event: impl Into<Event>) -> StreamInputRequest {
    StreamInputRequest {
        event: Some(event.into()),
    }
}
