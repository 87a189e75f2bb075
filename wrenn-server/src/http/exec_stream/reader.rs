//! What the client sends to its command: input, sizes of its terminal, signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::ws::{Message, WebSocket};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use futures::stream::SplitStream;
use tokio::sync::watch;
use wrenn_api::id::SandboxId;
use wrenn_api::stream::{ClientMessage, decode_input};
use wrenn_proto::hostagent as wire;

use super::command::{Input, Upward};
use super::flow::ClientState;
use crate::hosts::client::HostClient;
use crate::http::error::HttpError;
use crate::http::extract::parser_message;
use crate::service::error::ServiceError;

const SIGKILL: u32 = 9;

/// The next text frame of a socket on which nothing else may come yet.
pub(super) async fn next_message(
    stream: &mut SplitStream<WebSocket>,
) -> Result<ClientMessage, HttpError> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => return parse(&text),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(_))) => {
                return Err(HttpError::invalid(
                    "input came before 'start'; the first frame is a text frame",
                ));
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => {
                return Err(HttpError::invalid(
                    "the client left before it said what to run",
                ));
            }
        }
    }
}

fn parse(text: &str) -> Result<ClientMessage, HttpError> {
    serde_json::from_str(text).map_err(|error| {
        HttpError::invalid(format!(
            "a message cannot be used: {}",
            parser_message(&error)
        ))
    })
}

/// What the client sends to its command.
pub(super) struct Reader {
    pub(super) id: SandboxId,
    pub(super) host: HostClient,
    pub(super) pid: u32,
    pub(super) tty: bool,
    pub(super) input: Input,
    /// Told of every frame, pongs too.
    pub(super) heard: Arc<AtomicBool>,
    pub(super) client: watch::Sender<ClientState>,
    pub(super) json: bool,
}

impl Reader {
    /// Until the client leaves, which is no error, or sends what makes no sense.
    pub(super) async fn run(self, mut stream: SplitStream<WebSocket>) -> Result<(), HttpError> {
        while let Some(Ok(message)) = stream.next().await {
            self.heard.store(true, Ordering::Relaxed);
            match message {
                Message::Binary(frame) => {
                    let bytes = decode_input(&frame)
                        .map_err(|error| HttpError::invalid(error.to_string()))?;
                    self.pass(Upward::Bytes(bytes)).await;
                }
                Message::Text(text) => self.act(parse(&text)?).await?,
                Message::Close(_) => return Ok(()),
                Message::Pong(payload) => self.acknowledge(&payload),
                Message::Ping(_) => {}
            }
        }
        Ok(())
    }

    /// Passes a message on, which waits while the command takes no input.
    async fn pass(&self, message: Upward) {
        self.client.send_modify(|client| client.input_waits = true);
        self.input.send(message).await;
        self.client.send_modify(|client| client.input_waits = false);
    }

    fn acknowledge(&self, payload: &[u8]) {
        if let Ok(sent) = payload.try_into().map(u64::from_be_bytes) {
            self.client
                .send_modify(|client| client.acknowledged = client.acknowledged.max(sent));
        }
    }

    async fn act(&self, message: ClientMessage) -> Result<(), HttpError> {
        match message {
            ClientMessage::Input { data } if self.json => {
                let bytes = STANDARD
                    .decode(data)
                    .map_err(|_| HttpError::invalid("the 'data' of an input is not base64"))?;
                self.pass(Upward::Bytes(bytes.into())).await;
            }
            ClientMessage::Input { .. } => {
                return Err(HttpError::invalid(
                    "input goes in binary frames, or in 'input' messages with ?format=json",
                ));
            }
            ClientMessage::Eof => {
                self.pass(Upward::Close).await;
            }
            ClientMessage::Resize(size) => {
                if !self.tty {
                    return Err(HttpError::invalid("the command has no terminal to resize"));
                }
                let size = wire::TerminalSize {
                    cols: size.cols.into(),
                    rows: size.rows.into(),
                };
                self.pass(Upward::Resize(size)).await;
            }
            ClientMessage::Signal { signal } => self.signal(signal).await?,
            ClientMessage::Stop => self.signal(SIGKILL).await?,
            ClientMessage::Auth { .. } | ClientMessage::Start(_) | ClientMessage::Connect(_) => {
                return Err(HttpError::invalid("the command has been chosen already"));
            }
        }
        Ok(())
    }

    async fn signal(&self, signal: u32) -> Result<(), HttpError> {
        let request = wire::SignalProcessRequest {
            id: self.id.to_string(),
            pid: self.pid,
            signal,
            ..wire::SignalProcessRequest::default()
        };
        match self.host.calls.signal_process(request).await {
            Ok(_) => Ok(()),
            Err(error) => match ServiceError::of_host(&self.id, error.into()) {
                // It has ended meanwhile, and its end is on its way.
                ServiceError::NotFound(_) => Ok(()),
                error => Err(error.into()),
            },
        }
    }
}
