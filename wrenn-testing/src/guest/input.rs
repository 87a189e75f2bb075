//! Writing to a command's standard input or terminal.

use bytes::Bytes;
use futures::SinkExt as _;
use futures::channel::mpsc;
use tokio::task::JoinHandle;
use wrenn_proto::buffa::MessageField;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::process::__buffa::oneof::process_input::Input as Channel;
use wrenn_proto::process::__buffa::oneof::process_selector::Selector;
use wrenn_proto::process::__buffa::oneof::stream_input_request::Event;
use wrenn_proto::process::stream_input_request::{DataEvent, StartEvent};
use wrenn_proto::process::{ProcessInput, ProcessSelector, StreamInputRequest};

use super::Client;

/// Messages on their way. More would only hide how fast the command reads.
const IN_FLIGHT: usize = 4;
/// The largest message.
const MAX_CHUNK: usize = 64 * 1024;

/// The writing end of a command's input. Dropping it leaves the input open.
#[derive(Debug)]
pub(crate) struct Input {
    client: Client,
    pid: u32,
    terminal: bool,
    sender: mpsc::Sender<StreamInputRequest>,
    stream: JoinHandle<Result<(), ConnectError>>,
}

impl Input {
    pub(crate) fn open(client: Client, pid: u32, terminal: bool) -> Self {
        let (mut sender, receiver) = mpsc::channel(IN_FLIGHT);
        let process = ProcessSelector {
            selector: Some(Selector::Pid(pid)),
        };
        let start = StartEvent {
            process: process.into(),
        };
        // The channel is empty and open, so there is room for the first message.
        let _queued = sender.try_send(request(start));
        let sending = client.clone();
        let stream = tokio::spawn(async move { sending.stream_input(receiver).await });
        Self {
            client,
            pid,
            terminal,
            sender,
            stream,
        }
    }

    /// Writes all of `bytes`.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> Result<(), ConnectError> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
            let input = if self.terminal {
                Channel::Pty(chunk)
            } else {
                Channel::Stdin(chunk)
            };
            let data = DataEvent {
                input: MessageField::some(ProcessInput { input: Some(input) }),
            };
            if self.sender.send(request(data)).await.is_err() {
                return Err(ConnectError::failed_precondition(
                    "the command takes no more input",
                ));
            }
        }
        Ok(())
    }

    /// Waits until everything is written, and ends the input. A terminal's end of input is a
    /// character.
    pub(crate) async fn close(mut self) -> Result<(), ConnectError> {
        self.sender.close_channel();
        match (&mut self.stream).await {
            Ok(delivered) => delivered?,
            Err(error) => return Err(ConnectError::internal(error.to_string())),
        }
        if self.terminal {
            return Ok(());
        }
        self.client.close_stdin(Selector::Pid(self.pid)).await
    }
}

fn request(event: impl Into<Event>) -> StreamInputRequest {
    StreamInputRequest {
        event: Some(event.into()),
    }
}
