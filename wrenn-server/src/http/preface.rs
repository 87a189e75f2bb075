//! A deadline for the first bytes of a connection.
//!
//! Whether a connection speaks HTTP/1.1 or HTTP/2 is told by its first bytes, up to the 24 of
//! HTTP/2's preface (RFC 9113, section 3.4). The deadlines of both begin only when that is
//! known, so a client that sends nothing, or the preface byte by byte, would be kept for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream that fails when its version is not known in time.
#[derive(Debug)]
pub(crate) struct PrefaceTimeout<S> {
    stream: S,
    /// Until the version is known.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    deadline: Pin<Box<Sleep>>,
    /// Bytes of the preface that have come.
    matched: usize,
}

impl Waiting {
    /// Whether the version is known after these bytes.
    fn is_over(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if PREFACE.get(self.matched) != Some(byte) {
                return true;
            }
            self.matched += 1;
        }
        // No byte is the end of the stream.
        self.matched == PREFACE.len() || bytes.is_empty()
    }
}

impl<S> PrefaceTimeout<S> {
    pub(crate) fn new(stream: S, timeout: Duration) -> Self {
        let waiting = Waiting {
            deadline: Box::pin(tokio::time::sleep(timeout)),
            matched: 0,
        };
        Self {
            stream,
            waiting: Some(waiting),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefaceTimeout<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        let Some(waiting) = &mut this.waiting else {
            return polled;
        };
        match polled {
            Poll::Ready(Ok(())) if waiting.is_over(&buffer.filled()[before..]) => {
                this.waiting = None;
            }
            Poll::Pending if waiting.deadline.as_mut().poll(context).is_ready() => {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            _ => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PrefaceTimeout<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    async fn after(first: &[u8]) -> io::Result<usize> {
        let (near, mut far) = duplex(64);
        let mut stream = PrefaceTimeout::new(near, SHORT);
        far.write_all(first).await?;
        let mut buffer = [0; 64];
        let mut read = 0;
        while read < first.len() {
            read += stream.read(&mut buffer).await?;
        }
        let next = stream.read(&mut buffer);
        // Long after the deadline.
        match tokio::time::timeout(4 * SHORT, next).await {
            Ok(read) => read,
            Err(_) => Ok(0),
        }
    }

    #[tokio::test]
    async fn undecided_streams_time_out() {
        for first in [&b""[..], b"P", &PREFACE[..23]] {
            let error = after(first).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{first:?}");
        }
    }

    #[tokio::test]
    async fn known_versions_have_no_deadline_here() {
        for first in [&PREFACE[..], b"G", b"POST"] {
            after(first).await.unwrap();
        }
    }
}
