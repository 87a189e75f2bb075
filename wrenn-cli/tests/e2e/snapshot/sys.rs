//! The unsafe operations of the page-fault server.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

// Linux include/uapi/linux/userfaultfd.h.
#[repr(C)]
pub(super) struct CopyRequest {
    destination: u64,
    source: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

nix::ioctl_readwrite!(uffdio_copy, 0xaa, 0x03, CopyRequest);

/// Puts a page into the memory of whoever the descriptor belongs to, and wakes those that
/// wait for it. A page that is there already stays.
pub(super) fn place(userfault: &OwnedFd, destination: u64, page: &[u8]) -> io::Result<()> {
    let mut request = CopyRequest {
        destination,
        source: page.as_ptr() as u64,
        length: page.len() as u64,
        mode: 0,
        copied: 0,
    };
    // SAFETY: the request is whole and lives during the call; the kernel reads `length`
    // bytes from `source`, which are those of `page`.
    match unsafe { uffdio_copy(userfault.as_raw_fd(), &raw mut request) } {
        Ok(_) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes a descriptor that has just come in a message.
pub(super) fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for the message, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
