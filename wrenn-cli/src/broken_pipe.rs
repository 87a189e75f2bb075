//! Ends the program quietly where its output is not read any more, as in `wrenn doctor | head -1`
//! or at a terminal that was closed.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::process::exit;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

/// Prints a line to standard error. One that cannot be printed is dropped: the program may have
/// a sandbox to destroy.
macro_rules! drop_eprintln {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _printed = writeln!(std::io::stderr(), $($words)*);
    }};
}

/// The beginnings of what `println!` and `eprintln!` panic with.
const STDOUT_FAILED: &str = "failed printing to stdout";
const STDERR_FAILED: &str = "failed printing to stderr";

/// Makes a print that fails end the program: with success where its reader has read enough, and
/// with a failure where not even errors can be told. SIGPIPE stays ignored, since it would end
/// the program at connections that break as well.
pub fn exit_when_print_fails() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match exit_code(panic) {
        #[allow(clippy::exit, reason = "a panic has nothing to return to")]
        Some(code) => exit(code),
        None => previous(panic),
    }));
}

/// Whether `error` says that the reader of `output` is gone: a pipe whose other end is closed, or
/// a terminal that was. A disk that fails gives EIO as well, and is no terminal.
pub(crate) fn is_reader_gone(error: &io::Error, output: impl AsFd) -> bool {
    let is_terminal = || {
        fstat(output)
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice)
    };
    error.kind() == ErrorKind::BrokenPipe
        || (error.raw_os_error() == Some(Errno::IO.raw_os_error()) && is_terminal())
}

fn exit_code(panic: &PanicHookInfo<'_>) -> Option<i32> {
    let message = panic.payload_as_str()?;
    if message.starts_with(STDOUT_FAILED) {
        Some(0)
    } else if message.starts_with(STDERR_FAILED) {
        Some(1)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_disk_is_no_absent_reader() {
        let failed = io::Error::from(Errno::IO);
        let file = tempfile::tempfile().unwrap();
        assert!(!is_reader_gone(&failed, &file));
        assert!(is_reader_gone(&io::Error::from(Errno::PIPE), &file));
        let pty = nix::pty::openpty(None, None).unwrap();
        drop(pty.master);
        let error = rustix::io::write(&pty.slave, b"x").unwrap_err();
        assert!(is_reader_gone(&error.into(), &pty.slave));
    }
}
