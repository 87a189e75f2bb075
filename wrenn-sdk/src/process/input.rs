//! Messages to a process: input, end of input, the terminal's size.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::SinkExt as _;
use tokio::sync::{mpsc, watch};
use wrenn_api::stream::{ClientMessage, TerminalSize, encode_input};

use crate::error::{Error, Result};
use crate::websocket::{Message, Sender, WebSocketError};

/// The most of one frame: small enough for a new size to get through between two.
const CHUNK: usize = 32 << 10;

#[derive(Debug)]
pub(super) enum Input {
    Bytes(Bytes),
    Eof,
    Resize(TerminalSize),
}

/// The standard input of a process, or its terminal.
///
/// Dropping it leaves the input open; [`close`](Self::close) ends it.
#[derive(Debug)]
pub struct Stdin {
    inputs: mpsc::Sender<Input>,
}

impl Stdin {
    pub(super) fn new(inputs: mpsc::Sender<Input>) -> Self {
        Self { inputs }
    }

    /// Writes all of `bytes`. Waits while the process does not read. A connection that
    /// breaks with input underway shows as [`Error::InputLost`] of
    /// [`Process::next`](super::Process::next).
    ///
    /// # Errors
    /// When the process has ended or is not followed any more.
    ///
    /// # Cancel safety
    /// Some of the bytes are written when the future is dropped.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        let mut bytes = bytes.into();
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK));
            self.send(Input::Bytes(chunk)).await?;
        }
        Ok(())
    }

    /// Ends the input: the process reads end of file after what was written.
    ///
    /// # Errors
    /// When the process has ended or is not followed any more.
    pub async fn close(self) -> Result<()> {
        self.send(Input::Eof).await
    }

    async fn send(&self, input: Input) -> Result<()> {
        let sent = self.inputs.send(input).await;
        sent.map_err(|_| Error::InputClosed)
    }
}

/// Bytes of input that were sent, and that the server has read for sure.
///
/// After each frame of input goes a ping with the number of bytes so far, and its pong comes
/// back when the server has read them.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    sent: AtomicU64,
    read: AtomicU64,
}

impl Acknowledged {
    /// Bytes that the server may not have.
    pub(super) fn in_doubt(&self) -> u64 {
        let sent = self.sent.load(Ordering::Relaxed);
        sent.saturating_sub(self.read.load(Ordering::Relaxed))
    }

    /// A pong came back.
    pub(super) fn pong(&self, payload: &[u8]) {
        if let Ok(count) = payload.try_into().map(u64::from_be_bytes)
            && count <= self.sent.load(Ordering::Relaxed)
        {
            self.read.fetch_max(count, Ordering::Relaxed);
        }
    }

    /// Takes what is in doubt for delivered.
    pub(super) fn assume_read(&self) {
        self.read
            .store(self.sent.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Messages to be sent, over all connections of a process.
#[derive(Debug)]
pub(super) struct Inputs {
    queue: mpsc::Receiver<Input>,
    /// Whether more may come through the queue.
    open: bool,
    /// Whether the end was sent.
    ended: bool,
    sizes: watch::Receiver<Option<TerminalSize>>,
    /// Taken from the queue, and not sent yet.
    pending: Option<Input>,
}

impl Inputs {
    pub(super) fn new(
        queue: mpsc::Receiver<Input>,
        sizes: watch::Receiver<Option<TerminalSize>>,
    ) -> Self {
        Self {
            queue,
            open: true,
            ended: false,
            sizes,
            pending: None,
        }
    }

    /// Tells a new connection what the last one may not have delivered.
    pub(super) async fn repeat(&mut self, socket: &mut Sender) -> Result<(), WebSocketError> {
        let size = *self.sizes.borrow_and_update();
        if let Some(size) = size {
            socket.send(control(&ClientMessage::Resize(size))).await?;
        }
        if self.ended {
            socket.send(control(&ClientMessage::Eof)).await?;
        }
        Ok(())
    }

    /// Sends whatever comes, until the connection breaks. When the future is dropped, what
    /// was not sent goes to the next connection.
    pub(super) async fn send_all(
        &mut self,
        socket: &mut Sender,
        acknowledged: &Acknowledged,
    ) -> WebSocketError {
        loop {
            if self.pending.is_none() {
                self.pending = Some(self.next().await);
            }
            if let Err(error) = self.send_pending(socket, acknowledged).await {
                return error;
            }
        }
    }

    /// Sends what is there already, before the process is let go.
    pub(super) async fn send_rest(
        &mut self,
        socket: &mut Sender,
        acknowledged: &Acknowledged,
    ) -> Result<(), WebSocketError> {
        loop {
            self.send_pending(socket, acknowledged).await?;
            match self.queue.try_recv() {
                Ok(input) => self.pending = Some(input),
                Err(_) => return socket.close().await,
            }
        }
    }

    async fn send_pending(
        &mut self,
        socket: &mut Sender,
        acknowledged: &Acknowledged,
    ) -> Result<(), WebSocketError> {
        match &self.pending {
            Some(Input::Bytes(bytes)) => {
                let length = bytes.len() as u64;
                socket.feed(Message::Binary(encode_input(bytes))).await?;
                self.pending = None;
                let sent = acknowledged.sent.fetch_add(length, Ordering::Relaxed) + length;
                let payload = Bytes::copy_from_slice(&sent.to_be_bytes());
                socket.feed(Message::Ping(payload)).await?;
            }
            Some(Input::Eof) => {
                socket.feed(control(&ClientMessage::Eof)).await?;
                self.pending = None;
                self.ended = true;
            }
            Some(Input::Resize(size)) => {
                socket.feed(control(&ClientMessage::Resize(*size))).await?;
                self.pending = None;
            }
            None => return Ok(()),
        }
        socket.flush().await
    }

    async fn next(&mut self) -> Input {
        loop {
            tokio::select! {
                changed = self.sizes.changed() => {
                    if changed.is_err() {
                        // The process is let go.
                        return std::future::pending().await;
                    }
                    let size = *self.sizes.borrow_and_update();
                    if let Some(size) = size {
                        return Input::Resize(size);
                    }
                }
                input = self.queue.recv(), if self.open => match input {
                    Some(input) => return input,
                    None => self.open = false,
                },
            }
        }
    }
}

pub(super) fn control(message: &ClientMessage) -> Message {
    // These types always have a form in JSON.
    Message::text(serde_json::to_string(message).unwrap_or_default())
}
