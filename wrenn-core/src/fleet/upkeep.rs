//! When a sandbox must not go on as it is: its host's disk runs full below it, its own does,
//! or its VMM does what it should not.
//!
//! A full host would make the kernel call the stores of all disks invalid. So below half of
//! the room that must stay free when one is created, each sandbox is halted at once, and
//! then paused, where there is room for its memory. Otherwise it waits, halted, until there
//! is.

use std::time::Duration;

use super::admission::free_disk_mib;
use crate::RootDirectory;
use crate::devicemapper::Alarm;
use crate::sandbox::Sandbox;

/// How often it is looked.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// The same where the disk is not far from full.
const CLOSE_LOOK: Duration = Duration::from_millis(100);
/// Room that a pause needs beside the guest's memory, in MiB.
const PAUSE_EXTRA_MIB: u64 = 64;

/// Room on a host's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskRoom {
    pub(super) free_mib: u64,
    /// Below this sandboxes do not go on; zero where nobody asks for it.
    floor_mib: u64,
}

/// Why a sandbox must not go on as it is.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The host's disk is nearly full.
    Host(DiskRoom),
    /// Its own disk is.
    Disk(Alarm),
    /// Its VMM must end.
    Vmm(String),
}

impl DiskRoom {
    /// That of the disk below `root` at this moment.
    pub(super) fn of(root: &RootDirectory, reserve_mib: u64) -> Self {
        Self {
            // A file system that does not say is never full.
            free_mib: free_disk_mib(root).unwrap_or(u64::MAX),
            floor_mib: reserve_mib / 2,
        }
    }

    pub(super) fn is_short(self) -> bool {
        self.free_mib < self.floor_mib
    }

    /// Whether there is so much that what was halted may go on.
    pub(super) fn is_back(self) -> bool {
        self.free_mib >= self.floor_mib.saturating_mul(2)
    }

    /// Whether a guest with so much memory can be paused.
    pub(super) fn holds(self, memory_mib: u32) -> bool {
        self.free_mib >= u64::from(memory_mib) + PAUSE_EXTRA_MIB
    }

    pub(super) fn reason(self) -> String {
        let Self {
            free_mib,
            floor_mib,
        } = self;
        format!(
            "this host's disk is nearly full, {free_mib} MiB are free and sandboxes run with \
             {floor_mib} MiB or more; free some room on the host, or destroy a sandbox"
        )
    }

    /// How long to wait before the next look.
    fn pause(self) -> Duration {
        if self.free_mib < self.floor_mib.saturating_mul(4) {
            CLOSE_LOOK
        } else {
            LOOK
        }
    }
}

/// Ends when a sandbox must not go on as it is.
pub(super) async fn trouble(sandbox: &Sandbox, reserve_mib: u64) -> Trouble {
    tokio::select! {
        alarm = sandbox.disk_alarm(LOOK) => Trouble::Disk(alarm),
        trouble = looking(sandbox, reserve_mib) => trouble,
    }
}

async fn looking(sandbox: &Sandbox, reserve_mib: u64) -> Trouble {
    let (upkeep, root) = (sandbox.upkeep(), sandbox.root().clone());
    loop {
        let (upkeep, root) = (upkeep.clone(), root.clone());
        let looked =
            tokio::task::spawn_blocking(move || (upkeep.look(), DiskRoom::of(&root, reserve_mib)));
        // A runtime that is going down finishes nothing.
        let Ok((written, room)) = looked.await else {
            return std::future::pending().await;
        };
        if let Err(excess) = written {
            return Trouble::Vmm(excess.to_string());
        }
        if room.is_short() {
            return Trouble::Host(room);
        }
        tokio::time::sleep(room.pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_stops_below_the_floor_and_goes_on_well_above_it() {
        let room = |free_mib| DiskRoom {
            free_mib,
            floor_mib: 512,
        };
        assert!(room(511).is_short() && !room(512).is_short());
        assert!(room(1024).is_back() && !room(1023).is_back());
        assert!(room(192).holds(128) && !room(191).holds(128));
        assert_eq!((room(5000).pause(), room(1500).pause()), (LOOK, CLOSE_LOOK));
        let unasked = DiskRoom::of(&RootDirectory::new("/"), 0);
        assert!(!unasked.is_short());
    }
}
