//! The end of the machine.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use crate::kernel_log;

/// How long processes may take to leave after they were asked to.
const GRACE: Duration = Duration::from_secs(5);
const EVERYONE: Pid = Pid::from_raw(-1);

/// Stops all processes, writes everything to disk and switches the machine off.
pub(crate) fn off() {
    // Signals and unmounting are best effort here: the last step happens in any case, and
    // the data disk's journal keeps what could not be unmounted.
    kill(EVERYONE, Signal::SIGTERM).ok();
    if !all_gone_within(GRACE) {
        kill(EVERYONE, Signal::SIGKILL).ok();
        all_gone_within(GRACE);
    }
    sync();
    let root = Path::new("/var/lib/wrenn");
    if let Err(errno) = umount2(root, MntFlags::MNT_DETACH) {
        kernel_log::say(&format!("cannot unmount {}: {errno}", root.display()));
    }
    sync();
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    kernel_log::say(&format!("cannot switch off: {errno}"));
}

/// Reaps until there is no process left.
fn all_gone_within(limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match waitpid(EVERYONE, Some(WaitPidFlag::WNOHANG)) {
            Err(_) => return true,
            Ok(WaitStatus::StillAlive) => {
                if Instant::now() > deadline {
                    return false;
                }
                thread::sleep(Duration::from_millis(10));
            }
            Ok(_) => {}
        }
    }
}
