//! The unsafe operations of the page-fault server, and of a disk that loses its power.

use std::fs::File;
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

// Linux fs/ext4/ext4.h and include/uapi/linux/ext4.h.
const GOING_WITHOUT_LOG: u32 = 2;
nix::ioctl_read!(ext4_shutdown, b'X', 125, u32);
nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);

/// Gives a mounted ext4 this many blocks.
pub(super) fn enlarge(within: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: the number lives during the call, which reads it.
    unsafe { ext4_resize(within.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// Stops a mounted ext4 at once: nothing more is written, not even its journal. What it had
/// not written by then is lost, as it is when the power fails.
pub(super) fn stop(within: &File) -> io::Result<()> {
    let mut how = GOING_WITHOUT_LOG;
    // SAFETY: the number lives during the call, which reads it.
    unsafe { ext4_shutdown(within.as_raw_fd(), &raw mut how) }?;
    Ok(())
}
