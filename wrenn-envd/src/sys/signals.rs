//! Signals of pid 1, taken one by one instead of by handlers, and a clean start for
//! everybody below it.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::process::Signal;

/// Signals that are blocked and waited for.
pub struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// Blocks the signals for this thread and those that it starts.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` only writes to the set, for which there is room.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the line above.
        let mut set = unsafe { set.assume_init() };
        for signal in signals {
            // SAFETY: the set is initialised; a number that is no signal is refused.
            if unsafe { libc::sigaddset(&raw mut set, *signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the set is initialised, and the old mask is not asked for.
        let rc =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if rc == 0 {
            Ok(Self(set))
        } else {
            Err(io::Error::from_raw_os_error(rc))
        }
    }

    /// The next of them; `None` when the time is up.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<i32> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the set is initialised, no details are asked for, and the timeout is
        // null or outlives the call.
        let signal =
            unsafe { libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), timeout) };
        (signal > 0).then_some(signal)
    }
}

/// Lets every signal through again that the process before an exec had blocked. A mask is
/// inherited by all children, and one that blocks TERM makes them deaf to it.
pub fn unblock_all() -> io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` only writes to the set, for which there is room.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was initialised by the line above, and the old mask is not asked for.
    let rc =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(rc))
    }
}

/// Signals every process but the caller; from pid 1 that is the whole guest.
pub fn kill_everybody(signal: Signal) -> io::Result<()> {
    // SAFETY: takes two numbers and touches no memory of ours.
    let rc = unsafe { libc::kill(-1, signal.as_raw()) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
