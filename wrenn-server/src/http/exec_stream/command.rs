//! A command that an agent runs, as a stream of its events and a channel for its input.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use wrenn_api::id::SandboxId;
use wrenn_api::stream::Connect;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent as wire;
use wrenn_proto::hostagent::__buffa::oneof::{
    connect_process_request, exec_stream_request, process_event,
};

use crate::hosts::client::{HostClient, HostError};
use crate::service::error::ServiceError;

/// Messages on their way to the agent.
const IN_FLIGHT: usize = 16;

/// A command that an agent runs, and its output.
pub(crate) struct Command {
    pub(crate) pid: u32,
    pub(super) tag: String,
    pub(super) tty: bool,
    pub(super) input: Input,
    pub(crate) events: BoxStream<'static, Result<wire::ProcessEvent, ConnectError>>,
}

/// What goes up to the agent, in the words of the call that was made.
#[derive(Clone)]
pub(super) enum Input {
    Started(mpsc::Sender<wire::ExecStreamRequest>),
    Connected(mpsc::Sender<wire::ConnectProcessRequest>),
}

/// One message up.
pub(super) enum Upward {
    Bytes(Bytes),
    Resize(wire::TerminalSize),
    Close,
}

impl Input {
    /// False where the agent takes no more.
    pub(super) async fn send(&self, message: Upward) -> bool {
        match self {
            Self::Started(up) => {
                use exec_stream_request::Message;
                let message = match message {
                    Upward::Bytes(bytes) => Message::Input(bytes),
                    Upward::Resize(size) => size.into(),
                    Upward::Close => wire::CloseInput::default().into(),
                };
                let message = Some(message);
                up.send(wire::ExecStreamRequest { message }).await.is_ok()
            }
            Self::Connected(up) => {
                use connect_process_request::Message;
                let message = match message {
                    Upward::Bytes(bytes) => Message::Input(bytes),
                    Upward::Resize(size) => size.into(),
                    Upward::Close => wire::CloseInput::default().into(),
                };
                let message = Some(message);
                up.send(wire::ConnectProcessRequest { message })
                    .await
                    .is_ok()
            }
        }
    }
}

/// Opens a stream to the agent: what is put into the channel goes up, events come down.
macro_rules! open {
    ($call:expr, $first:expr) => {{
        let (mut send, receive) = $call.await.map_err(HostError::from)?.into_split();
        let (up, mut messages) = mpsc::channel(IN_FLIGHT);
        send.send($first).await.map_err(HostError::from)?;
        let pump = tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                // Why it takes no more is said on the way down.
                if send.send(message).await.is_err() {
                    return;
                }
            }
        });
        let pump = AbortOnDropHandle::new(pump);
        let events = futures::stream::try_unfold((receive, pump), |(mut receive, pump)| async {
            let message = receive.message().await?;
            Ok(message.map(|message| (message.to_owned_message(), (receive, pump))))
        });
        (up, events.boxed())
    }};
}

impl Command {
    /// Starts a command. Dropped, it runs on.
    pub(crate) async fn start(
        id: &SandboxId,
        host: &HostClient,
        command: wire::Command,
    ) -> Result<Self, ServiceError> {
        let tag = command.tag.clone();
        let tty = command.terminal.is_set();
        let opening = async {
            let start = wire::ExecStart {
                id: id.to_string(),
                command: Some(command).into(),
            };
            let first = wire::ExecStreamRequest {
                message: Some(start.into()),
            };
            let (up, events) = open!(host.streams.exec_stream(), first);
            Self::begun(Input::Started(up), events, tag, tty).await
        };
        opening
            .await
            .map_err(|error| ServiceError::of_host(id, error))
    }

    /// Follows a command that runs.
    pub(crate) async fn connect(
        id: &SandboxId,
        host: &HostClient,
        connect: Connect,
    ) -> Result<Self, ServiceError> {
        let tag = connect.tag.unwrap_or_default();
        let opening = async {
            let connect = wire::ProcessConnect {
                id: id.to_string(),
                pid: connect.pid.unwrap_or_default(),
                tag: tag.clone(),
                terminal: false,
                from: connect
                    .from
                    .map(|from| wire::OutputOffsets {
                        stdout: from.stdout,
                        stderr: from.stderr,
                        terminal: from.tty,
                    })
                    .into(),
            };
            let first = wire::ConnectProcessRequest {
                message: Some(connect.into()),
            };
            let (up, events) = open!(host.streams.connect_process(), first);
            Self::begun(Input::Connected(up), events, tag, false).await
        };
        opening
            .await
            .map_err(|error| ServiceError::of_host(id, error))
    }

    async fn begun(
        input: Input,
        mut events: BoxStream<'static, Result<wire::ProcessEvent, ConnectError>>,
        tag: String,
        tty: bool,
    ) -> Result<Self, HostError> {
        loop {
            let event = match events.next().await {
                Some(Ok(event)) => event.event,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(silent()),
            };
            match event {
                Some(process_event::Event::Started(started)) => {
                    return Ok(Self {
                        pid: started.pid,
                        tag: if started.tag.is_empty() {
                            tag
                        } else {
                            started.tag
                        },
                        tty: tty || started.terminal,
                        input,
                        events,
                    });
                }
                Some(process_event::Event::KeepAlive(_)) | None => {}
                Some(_) => return Err(silent()),
            }
        }
    }
}

fn silent() -> HostError {
    HostError::Refused {
        reason: wire::Reason::REASON_INTERNAL,
        state: None,
        message: "the host does not say what it started".to_owned(),
    }
}
