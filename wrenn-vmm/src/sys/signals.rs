//! Deadly signals: one line on standard error that says what happened, then the exit
//! code that Firecracker uses for it.

use std::io;

use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::register_signal_handler;

use crate::exit::ExitCode;

const fn exit_code(signal: c_int) -> ExitCode {
    match signal {
        libc::SIGSYS => ExitCode::BadSystemCall,
        libc::SIGBUS => ExitCode::BusError,
        libc::SIGSEGV => ExitCode::SegmentationFault,
        libc::SIGXFSZ => ExitCode::FileSizeLimit,
        libc::SIGXCPU => ExitCode::CpuTimeLimit,
        libc::SIGHUP => ExitCode::HangUp,
        libc::SIGILL => ExitCode::IllegalInstruction,
        _ => ExitCode::Unexpected,
    }
}

/// Offset of `si_syscall` in `siginfo_t`: after three `int`s, padding and the address
/// of the call (Linux `include/uapi/asm-generic/siginfo.h`).
const SYSTEM_CALL_OFFSET: usize = 24;

extern "C" fn die(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    let mut line = Line::new();
    line.text("wrenn-vmm: killed by signal ");
    line.number(signal.unsigned_abs());
    if signal == libc::SIGSYS && !info.is_null() {
        let number = info.wrapping_byte_add(SYSTEM_CALL_OFFSET).cast::<c_int>();
        // SAFETY: for a handler with SA_SIGINFO the kernel passes a whole `siginfo_t`
        // (128 bytes), and for SIGSYS it fills in the number at this aligned offset.
        let number = unsafe { number.read() };
        line.text(": forbidden system call ");
        line.number(number.unsigned_abs());
    }
    line.text("\n");
    line.write();
    // SAFETY: `_exit` is async-signal-safe and does not return.
    unsafe { libc::_exit(exit_code(signal) as c_int) }
}

/// A line built without allocating, since a signal handler may not.
struct Line {
    bytes: [u8; 128],
    length: usize,
}

impl Line {
    const fn new() -> Self {
        Self {
            bytes: [0; 128],
            length: 0,
        }
    }

    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(slot) = self.bytes.get_mut(self.length) {
                *slot = byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, mut number: u32) {
        let mut digits = [0u8; 10];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.text(std::str::from_utf8(&digits[start..]).unwrap_or("?"));
    }

    fn write(&self) {
        // SAFETY: the pointer is valid for `length` bytes, which never exceeds the array;
        // `write` is async-signal-safe. A failure leaves nothing better to do.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.length) };
    }
}

/// Installs the handlers.
///
/// # Errors
/// If the kernel refuses one.
pub fn install() -> io::Result<()> {
    for signal in [
        libc::SIGSYS,
        libc::SIGBUS,
        libc::SIGSEGV,
        libc::SIGXFSZ,
        libc::SIGXCPU,
        libc::SIGHUP,
        libc::SIGILL,
    ] {
        register_signal_handler(signal, die)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_holds_text_and_numbers() {
        let mut line = Line::new();
        line.text("call ");
        line.number(0);
        line.text(" ");
        line.number(4_294_967_295);
        assert_eq!(&line.bytes[..line.length], b"call 0 4294967295");
    }

    #[test]
    fn line_is_cut_and_never_overflows() {
        let mut line = Line::new();
        for _ in 0..40 {
            line.text("12345678");
        }
        assert_eq!(line.length, line.bytes.len());
    }
}
