//! Bytes between a connection, which waits without a thread, and a thread that packs or
//! unpacks. Each side waits for the other.

use std::io::{self, Read, Write};

use bytes::{Buf as _, Bytes};
use futures::Stream;
use tokio::sync::mpsc;

/// The size in which an archive is sent.
const CHUNK: usize = 256 * 1024;
/// Chunks that may be on their way.
const IN_FLIGHT: usize = 2;

/// Where a thread writes what a connection sends.
pub(super) struct Sink {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

/// A pipe from a thread to a connection.
pub(super) fn outward() -> (Sink, impl Stream<Item = io::Result<Bytes>>) {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let sink = Sink {
        sender,
        buffer: Vec::new(),
    };
    let chunks = futures::stream::unfold(receiver, |mut receiver| async {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    });
    (sink, chunks)
}

impl Sink {
    /// Ends with an error: what was sent is no archive.
    pub(super) fn abort(&mut self, error: io::Error) {
        self.buffer.clear();
        // The connection may be gone.
        self.sender.blocking_send(Err(error)).ok();
    }

    /// Sends what is left, and the error that it ends with.
    pub(super) fn finish(mut self, outcome: io::Result<()>) {
        let flushed = self.flush();
        // The connection may be gone.
        if let Err(error) = outcome.and(flushed) {
            self.sender.blocking_send(Err(error)).ok();
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.buffer);
        self.sender
            .blocking_send(Ok(chunk.into()))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A message from a connection to a thread.
enum Piece {
    Data(Bytes),
    /// Said, and not left to a closed channel: a connection that breaks is no end.
    End,
}

/// The connection's end.
pub(super) struct Feed(mpsc::Sender<Piece>);

/// The thread is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Where a thread reads what a connection receives.
pub(super) struct Received {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

/// A pipe from a connection to a thread.
pub(super) fn inward() -> (Feed, Received) {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let received = Received {
        receiver,
        piece: Bytes::new(),
        ended: false,
    };
    (Feed(sender), received)
}

impl Feed {
    pub(super) async fn send(&self, data: Bytes) -> Result<(), Gone> {
        self.0.send(Piece::Data(data)).await.map_err(|_| Gone)
    }

    pub(super) async fn end(&self) {
        self.0.send(Piece::End).await.ok();
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(data)) => self.piece = data,
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the connection broke",
                    ));
                }
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
