//! The end of a guest, in order.

use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{Signal, WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

use super::cmdline::CommandLine;
use super::console::warn;

/// How long processes get to end by themselves.
const GRACE: Duration = Duration::from_secs(3);

/// Ends every process, writes everything to the disks, and ends the machine.
pub(super) fn off(line: &CommandLine) -> ! {
    kill_all(Signal::TERM);
    if !all_gone(GRACE) {
        kill_all(Signal::KILL);
        all_gone(GRACE);
    }
    rustix::fs::sync();
    for directory in ["/tmp", "/run", "/dev/shm"] {
        // Not mounted, perhaps.
        unmount(directory, UnmountFlags::DETACH).ok();
    }
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, c"") {
        warn(&format!(
            "cannot make the root file system read-only: {error}"
        ));
    }
    rustix::fs::sync();
    // A VMM without power management ends on a reset, and says so to its guests.
    let command = if line
        .value("reboot")
        .is_some_and(|how| how.split(',').any(|how| how.starts_with('k')))
    {
        RebootCommand::Restart
    } else {
        RebootCommand::PowerOff
    };
    loop {
        if let Err(error) = reboot(command) {
            warn(&format!("cannot power off: {error}"));
        }
        std::thread::sleep(GRACE);
    }
}

/// Everybody but us, kill(2) with pid -1.
fn kill_all(signal: Signal) {
    // ESRCH: nobody is left.
    crate::sys::signals::kill_everybody(signal).ok();
}

/// Buries children until none is left, or the time is up.
fn all_gone(patience: Duration) -> bool {
    let start = Instant::now();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => continue,
            Err(_) => return true,
            Ok(None) if start.elapsed() > patience => return false,
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
