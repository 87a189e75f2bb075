//! Descriptors of the daemon's side: ends of pipes and terminals that never block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::sys::polled::Polled;

/// One end, registered with the runtime.
#[derive(Debug)]
pub struct Stdio(Polled);

impl Stdio {
    pub fn new(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        let fd = fd.into();
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self(Polled::new(fd)?))
    }

    /// Reads what there is, up to the size of the buffer. 0 means that nobody is left to
    /// write: the end of a pipe, or `EIO` of a terminal.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self
            .0
            .read_with(|fd| Ok(rustix::io::read(fd, &mut *buffer)?))
            .await
        {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            result => result,
        }
    }

    /// Bytes that could be read right now.
    pub fn available(&self) -> u64 {
        rustix::io::ioctl_fionread(self.as_fd()).unwrap_or(0)
    }

    /// Writes everything, as fast as the reader takes it.
    ///
    /// # Cancel safety
    /// Not cancel safe: a part may have been written.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self
                .0
                .write_with(|fd| Ok(rustix::io::write(fd, bytes)?))
                .await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[count..];
        }
        Ok(())
    }
}

impl AsFd for Stdio {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// The master's and the process's end of a new terminal.
#[derive(Debug)]
pub struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

impl Terminal {
    pub fn open(size: TerminalSize) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        // Asks the master for its peer: a path in /dev/pts could be another mount's.
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        resize(&master, size)?;
        Ok(Self { master, slave })
    }
}

/// Tells a terminal its size; its foreground processes get SIGWINCH.
pub fn resize(master: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}
