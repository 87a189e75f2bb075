//! Bytes that do not repeat, made as they are read, and the checksum of bytes as they are
//! written.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const BLOCK: usize = 256 << 10;

/// So many bytes, each block of which differs from all others.
pub(crate) struct Pattern {
    block: Vec<u8>,
    number: u64,
    at: usize,
    left: usize,
}

impl Pattern {
    pub(crate) fn of(size: usize) -> Self {
        let mut block = vec![0; BLOCK];
        rand::fill(&mut block[..]);
        let mut pattern = Self {
            block,
            number: 0,
            at: 0,
            left: size,
        };
        pattern.stamp();
        pattern
    }

    /// The same bytes once more.
    pub(crate) fn again(&self) -> Self {
        Self {
            block: self.block.clone(),
            ..*self
        }
    }

    pub(crate) fn checksum(mut self) -> String {
        let mut hash = Sha256::new();
        while let Some(bytes) = self.next(BLOCK) {
            hash.update(bytes);
        }
        hex(hash)
    }

    fn stamp(&mut self) {
        self.block[..8].copy_from_slice(&self.number.to_le_bytes());
    }

    fn next(&mut self, most: usize) -> Option<&[u8]> {
        if self.at == self.block.len() {
            self.at = 0;
            self.number += 1;
            self.stamp();
        }
        let count = most.min(self.left).min(self.block.len() - self.at);
        let from = self.at;
        self.at += count;
        self.left -= count;
        (count > 0).then(|| &self.block[from..from + count])
    }
}

impl AsyncRead for Pattern {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = buffer.remaining();
        if let Some(bytes) = self.get_mut().next(most) {
            buffer.put_slice(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

/// Counts and hashes what is written, and keeps nothing.
#[derive(Default)]
pub(crate) struct Checksum {
    hash: Sha256,
    pub(crate) bytes: usize,
}

impl Checksum {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len();
    }

    pub(crate) fn hex(self) -> String {
        hex(self.hash)
    }
}

impl io::Write for Checksum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncWrite for Checksum {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().update(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn hex(hash: Sha256) -> String {
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
