//! Keeps the processor of an emulated machine awake.
//!
//! QEMU's emulation now and then loses an interrupt of the processor's timer (that of the local
//! APIC). An idle kernel waits for that one alone, and sleeps until some device interrupts it:
//! for minutes, if nobody sends a packet. And an interrupt is not always enough. The kernel
//! programs the timer only for what comes before the event that it is programmed for; after a
//! lost one that lies in the past, and so its timers may stand still although it is awake.
//!
//! The real-time clock is a device of its own, with a timer of its own in QEMU and its own
//! interrupt line, and interrupts the processor whatever became of the other timer:
//!
//! ```text
//! QEMU's clock ── alarm, each second ──▶ IRQ 8 ──▶ rtc core: next alarm in 1 s
//!                                                     │ read
//!                                                     ▼
//!   all overdue timers run ◀── processor's timer ◀── this thread: sleeps until
//!                              programmed for now    a time long past
//! ```
//!
//! `RTC_UIE_ON` (rtc(4)) asks for an interrupt each second. The kernel makes it from the
//! clock's alarm: each interrupt programs the next. `RTC_PIE_ON` is of no use, because the
//! kernel makes that one from the timer that gets lost.
//!
//! The kernel loses the chain of alarms where the clock's second ends between its check of an
//! alarm and its programming of it (`__rtc_set_alarm` says so), and the next one would come a
//! day later. So the interrupts are enabled again when they stay away.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};

use crate::boot::{At as _, BootError};
use crate::{kernel_log, sys};

const DEVICE: &str = "/dev/rtc0";
/// Interrupts come each second, and a busy machine is late by less than this.
const OVERDUE_AFTER_MS: u16 = 5000;
/// rtc(4): a read returns an `unsigned long`.
const COUNT_SIZE: usize = 8;
/// Before any event for which the processor's timer can be programmed.
const LONG_PAST: TimeSpec = TimeSpec::new(0, 1);

#[derive(Debug, PartialEq, Eq)]
enum Wait {
    Interrupted,
    Overdue,
}

/// Enables the clock's update interrupt, and starts the thread that takes it for as long as
/// the machine lives.
///
/// # Errors
/// The machine has no real-time clock, or one without an alarm.
pub(crate) fn start() -> Result<(), BootError> {
    let device = File::open(DEVICE).at("open", DEVICE)?;
    sys::enable_update_interrupt(&device).at("enable the update interrupt of", DEVICE)?;
    thread::spawn(move || {
        // They are for the thread that waits for them.
        if let Err(errno) = SigSet::all().thread_block() {
            kernel_log::say(&format!("cannot block signals: {errno}"));
        }
        let Err(error) = take_interrupts(&device);
        kernel_log::failure(&error);
        // The interrupts go on while the device is open.
        loop {
            thread::park();
        }
    });
    Ok(())
}

fn take_interrupts(device: &File) -> Result<Infallible, BootError> {
    loop {
        match wait(device, OVERDUE_AFTER_MS).at("wait for", DEVICE)? {
            Wait::Interrupted => program_timer(),
            Wait::Overdue => {
                kernel_log::say("the clock's interrupt is overdue, and is enabled again");
                sys::disable_update_interrupt(device)
                    .and_then(|()| sys::enable_update_interrupt(device))
                    .at("enable the update interrupt of", DEVICE)?;
            }
        }
    }
}

/// Waits for an interrupt and takes it.
fn wait(mut device: &File, limit_ms: u16) -> io::Result<Wait> {
    let mut interest = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    if poll(&mut interest, PollTimeout::from(limit_ms))? == 0 {
        return Ok(Wait::Overdue);
    }
    let mut count = [0; COUNT_SIZE];
    device.read_exact(&mut count)?;
    Ok(Wait::Interrupted)
}

/// Has the kernel program the processor's timer, whatever it believes that it is programmed
/// for: nothing else lies as far in the past.
fn program_timer() {
    let clock = ClockId::CLOCK_MONOTONIC;
    let flags = ClockNanosleepFlags::TIMER_ABSTIME;
    if let Err(errno) = clock_nanosleep(clock, flags, &LONG_PAST) {
        kernel_log::say(&format!("cannot program the processor's timer: {errno}"));
    }
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
    fn programming_the_timer_returns_at_once() {
        let start = std::time::Instant::now();
        program_timer();
        assert!(start.elapsed() < std::time::Duration::from_secs(10));
    }

    #[test]
    fn other_device_has_no_update_interrupt() {
        let other = File::open("/dev/null").unwrap();
        let error = sys::enable_update_interrupt(&other).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
