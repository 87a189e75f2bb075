//! Standard input and output, without ever waiting for them.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use vmm_sys_util::terminal::Terminal;

use crate::devices::console::Sink;

/// Standard output, where the guest's console goes.
#[derive(Debug, Default)]
pub struct StandardOutput;

impl StandardOutput {
    /// Its descriptor, to wait until it can be written.
    pub fn descriptor(&self) -> RawFd {
        libc::STDOUT_FILENO
    }
}

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the pointer is valid for reads of its length.
        let count = unsafe { libc::write(libc::STDOUT_FILENO, bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for StandardOutput {
    fn ready(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: libc::STDOUT_FILENO,
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: the pointer is to one `pollfd` that lives during the call.
        let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
        // An error counts as ready: the write then tells which.
        count != 0
    }

    fn grows(&self) -> bool {
        let stdout = io::stdout();
        let descriptor: BorrowedFd<'_> = stdout.as_fd();
        descriptor
            .try_clone_to_owned()
            .map(std::fs::File::from)
            .and_then(|file| file.metadata())
            .is_ok_and(|metadata| metadata.is_file())
    }
}

/// Standard input, where the console's input comes from. A terminal is in raw mode while
/// this value lives.
#[derive(Debug)]
pub struct StandardInput {
    raw: bool,
}

impl StandardInput {
    /// Takes over standard input.
    pub fn take_over() -> Self {
        let stdin = io::stdin();
        // SAFETY: the descriptor number is only looked at.
        let is_terminal = unsafe { libc::isatty(libc::STDIN_FILENO) } == 1;
        let raw = is_terminal
            && match stdin.lock().set_raw_mode() {
                Ok(()) => true,
                Err(error) => {
                    log::warn!("the terminal cannot be put into raw mode: {error}");
                    false
                }
            };
        Self { raw }
    }

    /// Its descriptor, to wait until it can be read.
    pub fn descriptor(&self) -> RawFd {
        io::stdin().as_raw_fd()
    }

    /// Reads what is there; `None` if nothing is.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        // Reading through the standard handle would buffer, and buffered bytes cannot be
        // waited for.
        let mut poll = libc::pollfd {
            fd: libc::STDIN_FILENO,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer is to one `pollfd` that lives during the call.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } != 1 {
            return Ok(None);
        }
        // SAFETY: the pointer is valid for writes of its length.
        let count =
            unsafe { libc::read(libc::STDIN_FILENO, buffer.as_mut_ptr().cast(), buffer.len()) };
        usize::try_from(count)
            .map(Some)
            .map_err(|_| io::Error::last_os_error())
    }

    /// Gives the terminal back.
    pub fn give_back(&self) {
        if self.raw
            && let Err(error) = io::stdin().lock().set_canon_mode()
        {
            log::warn!("the terminal cannot be put back into line mode: {error}");
        }
    }
}
