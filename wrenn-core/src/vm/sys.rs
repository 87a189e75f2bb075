//! The one unsafe operation of this module.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes a pidfd something to wait for.
pub(super) fn await_pidfd(pidfd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `OwnedFd` behind an `Arc` names the same open descriptor for as long as
    // the `AsyncFd` holds its share of it: nothing here can close or replace it.
    let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}
