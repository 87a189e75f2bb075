//! Descriptors whose readiness the runtime watches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// A descriptor that is registered with the runtime for as long as it is open. It gives
/// out borrows only, so nobody can close or replace it underneath.
#[derive(Debug)]
pub struct Polled(AsyncFd<OwnedFd>);

impl Polled {
    /// Must be called on a runtime; the descriptor should not block.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is ours, and no `&mut` of it leaves this type, so it
        // stays the same open one until the registration is dropped with it.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(registered?))
    }

    /// Waits until there is something to read, or the other side is gone.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }

    /// Tries `read` whenever there may be something, until it does not want to block.
    pub async fn read_with<T>(
        &self,
        mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0
            .async_io(Interest::READABLE, |fd| read(fd.as_fd()))
            .await
    }

    /// Tries `write` whenever there may be room, until it does not want to block.
    pub async fn write_with<T>(
        &self,
        mut write: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0
            .async_io(Interest::WRITABLE, |fd| write(fd.as_fd()))
            .await
    }
}

impl AsFd for Polled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
