//! Keeps the processor of an emulated machine awake.
//!
//! QEMU's emulation now and then loses a timer interrupt of the local APIC. An idle kernel has
//! programmed no other, and sleeps until a device interrupts it: for minutes, if nobody sends a
//! packet. The real-time clock is a device of its own, with its own timer in QEMU and its own
//! interrupt line (IRQ 8), so it interrupts the processor whatever became of the APIC's timer.
//!
//! ```text
//! QEMU's clock ── alarm ──▶ IRQ 8 ──▶ rtc core: next alarm in 1 s, count + 1
//!                             │                     ▲                 │ read
//!                             ▼                     │ off, on         ▼
//!                   idle loop ends, overdue     no interrupt ◀──── this thread
//!                   timers run                  for 5 s
//! ```
//!
//! `RTC_UIE_ON` (rtc(4)) asks for an interrupt each second. The kernel makes it from the
//! clock's alarm: each interrupt programs the next. `RTC_PIE_ON` is of no use, because the
//! kernel makes that one from the timer that gets lost.
//!
//! The kernel loses the chain of alarms where the clock's second ends between its check of an
//! alarm and its programming of it (`__rtc_set_alarm` says so), and the next one would come a
//! day later. So a thread reads the interrupts and enables them again when they stay away.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::boot::{At as _, BootError};
use crate::{kernel_log, sys};

const DEVICE: &str = "/dev/rtc0";
/// Interrupts come each second, and a busy machine is late by less than this.
const OVERDUE_AFTER_MS: u16 = 5000;
/// rtc(4): a read returns an `unsigned long`.
const COUNT_SIZE: usize = 8;

/// The update interrupt of the real-time clock, enabled. It ends with this value.
#[derive(Debug)]
pub(crate) struct UpdateInterrupt {
    device: File,
}

#[derive(Debug, PartialEq, Eq)]
enum Wait {
    Interrupted,
    Overdue,
}

impl UpdateInterrupt {
    /// Enables it.
    ///
    /// # Errors
    /// The machine has no real-time clock, or one without an alarm.
    pub(crate) fn enable() -> Result<Self, BootError> {
        let device = File::open(DEVICE).at("open", DEVICE)?;
        sys::enable_update_interrupt(&device).at("enable the update interrupt of", DEVICE)?;
        Ok(Self { device })
    }

    /// Starts the thread that enables it again when it stays away.
    pub(crate) fn supervise(self) {
        thread::spawn(move || {
            let Err(error) = self.watch();
            kernel_log::failure(&error);
            // The interrupts may go on by themselves, while the device is open.
            loop {
                thread::park();
            }
        });
    }

    fn watch(&self) -> Result<std::convert::Infallible, BootError> {
        loop {
            if wait(&self.device, OVERDUE_AFTER_MS).at("wait for", DEVICE)? == Wait::Interrupted {
                continue;
            }
            kernel_log::say("the clock's update interrupt is overdue and enabled again");
            sys::disable_update_interrupt(&self.device)
                .and_then(|()| sys::enable_update_interrupt(&self.device))
                .at("enable the update interrupt of", DEVICE)?;
        }
    }
}

/// Waits for an interrupt and takes it.
fn wait(mut device: &File, limit_ms: u16) -> io::Result<Wait> {
    let mut interest = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    match poll(&mut interest, PollTimeout::from(limit_ms)) {
        Ok(0) => return Ok(Wait::Overdue),
        Ok(_) => {}
        // Nothing was waited for, which the next round makes good.
        Err(Errno::EINTR) => return Ok(Wait::Interrupted),
        Err(errno) => return Err(errno.into()),
    }
    let mut count = [0; COUNT_SIZE];
    device.read_exact(&mut count)?;
    Ok(Wait::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn pipe() -> (File, File) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        (reader.into(), writer.into())
    }

    #[test]
    fn interrupt_is_taken_once() {
        let (reader, mut writer) = pipe();
        writer.write_all(&[0; COUNT_SIZE]).unwrap();
        assert_eq!(wait(&reader, 0).unwrap(), Wait::Interrupted);
        assert_eq!(wait(&reader, 0).unwrap(), Wait::Overdue);
    }

    #[test]
    fn removed_device_ends_the_wait() {
        let (reader, writer) = pipe();
        drop(writer);
        assert!(wait(&reader, 0).is_err());
    }

    #[test]
    fn other_device_has_no_update_interrupt() {
        let other = File::open("/dev/null").unwrap();
        let error = sys::enable_update_interrupt(&other).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
