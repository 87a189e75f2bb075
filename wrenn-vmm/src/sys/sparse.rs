//! Where a file has data and where holes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The first offset at or past `from` that has data; `None` if there is none.
///
/// # Errors
/// If the file system does not tell.
pub fn data(file: BorrowedFd<'_>, from: u64) -> io::Result<Option<u64>> {
    match seek(file, from, libc::SEEK_DATA) {
        Ok(offset) => Ok(Some(offset)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first offset at or past `from` that is in a hole, the end of the file counting as
/// one.
///
/// # Errors
/// If the file system does not tell.
pub fn hole(file: BorrowedFd<'_>, from: u64) -> io::Result<u64> {
    seek(file, from, libc::SEEK_HOLE)
}

fn seek(file: BorrowedFd<'_>, from: u64, whence: libc::c_int) -> io::Result<u64> {
    let from = i64::try_from(from).map_err(io::Error::other)?;
    // SAFETY: the call takes no pointer, and the borrow keeps the descriptor open. It
    // moves the position of the file, which nothing here uses.
    let offset = unsafe { libc::lseek64(file.as_raw_fd(), from, whence) };
    u64::try_from(offset).map_err(|_| io::Error::last_os_error())
}
