//! What one VM may take of the host: a cgroup of version 2 for each.
//!
//! ```text
//! /sys/fs/cgroup/                 cgroup.subtree_control: +cpu +io +memory +pids
//! └─ wrenn/                       the same
//!    └─ <sandbox id>/             cpu.max memory.max memory.swap.max pids.max
//!                                 the VMM is born in it
//! ```
//!
//! A host that has no such hierarchy, or lacks a controller, still runs sandboxes:
//! [`Cgroups::enforced`] says what holds, and one warning says what doesn't.
//!
//! The limits are ceilings for a VMM that misbehaves, with room for what one takes beside
//! its guest. A guest is held by its number of vCPUs and its memory already.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tracing::{debug, warn};

use super::Resources;
use crate::SandboxId;

/// Name of the group that holds those of all VMs.
const HOME: &str = "wrenn";
/// Controllers that are turned on. Without limits `io` shares a disk evenly.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// Microseconds in which processor time is counted, the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// How often the removal of a group is tried while the kernel buries its process.
const REMOVAL_ATTEMPTS: u32 = 12;

/// Where the groups of VMs are made.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// The group that holds them; `None` where the host has no hierarchy of version 2.
    home: Option<PathBuf>,
    enforced: Enforced,
}

/// Which limits hold on a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enforced {
    /// Processor time.
    pub cpu: bool,
    /// Memory.
    pub memory: bool,
    /// Number of processes and threads.
    pub pids: bool,
}

/// The most that one VM may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Processor time, in hundredths of one processor.
    pub cpu_percent: u32,
    /// Memory, its own and the kernel's on its behalf.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// Why a VM's cgroup could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The group itself.
    #[error("cannot make the cgroup {path}")]
    Make {
        /// The group.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One of its limits.
    #[error("cannot write {value} to {path}")]
    Limit {
        /// The file of the limit.
        path: PathBuf,
        /// The limit.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The cgroup of one VM. Dropping it removes it, once its process is gone.
#[derive(Debug)]
pub struct VmCgroup {
    path: PathBuf,
    removed: bool,
}

impl Limits {
    /// The limits of a VM of this size.
    ///
    /// Beside the guest's memory there are the VMM's own, page tables on both sides of
    /// the guest (a few bytes for each of its pages), and the page cache of its disk,
    /// which the kernel takes back where the limit is near. Beside the vCPUs there are
    /// threads for the disk, the network and the API.
    #[must_use]
    pub fn of(resources: Resources) -> Self {
        let memory_mib = u64::from(resources.memory_mib());
        Self {
            cpu_percent: u32::from(resources.vcpus()) * 100 + 50,
            memory_bytes: (memory_mib + memory_mib / 32 + 128) << 20,
            pids: u32::from(resources.vcpus()) + 64,
        }
    }
}

impl Enforced {
    /// What does not hold, in words.
    fn missing(self) -> Vec<&'static str> {
        let all = [
            (self.cpu, "processor time"),
            (self.memory, "memory"),
            (self.pids, "number of processes"),
        ];
        all.into_iter()
            .filter_map(|(holds, name)| (!holds).then_some(name))
            .collect()
    }
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.missing().as_slice() {
            [] => f.write_str("all limits hold"),
            missing => write!(f, "there is no limit on {}", missing.join(", ")),
        }
    }
}

impl Cgroups {
    /// Prepares the hierarchy at `mount`, usually `/sys/fs/cgroup`. Warns where a limit
    /// cannot be held.
    #[must_use]
    pub fn open(mount: &Path) -> Self {
        let prepared = prepare(mount);
        let enforced = match &prepared {
            Ok(home) => enabled(home),
            Err(_) => Enforced::default(),
        };
        match &prepared {
            Ok(_) if enforced.missing().is_empty() => {}
            Ok(_) => {
                warn!(at = %mount.display(), "{enforced} of a sandbox: a cgroup controller cannot be had (see `wrenn doctor`)")
            }
            Err(error) => {
                warn!(at = %mount.display(), %error, "{enforced} of a sandbox: there are no cgroups of version 2 (see `wrenn doctor`)");
            }
        }
        Self {
            home: prepared.ok(),
            enforced,
        }
    }

    /// Which limits hold.
    #[must_use]
    pub fn enforced(&self) -> Enforced {
        self.enforced
    }

    /// Makes the group of one VM; `None` where this host has none.
    ///
    /// # Errors
    /// When the kernel refuses it or one of its limits.
    pub fn create(&self, id: &SandboxId, limits: Limits) -> Result<Option<VmCgroup>, CgroupError> {
        let Some(home) = &self.home else {
            return Ok(None);
        };
        let path = home.join(id.as_str());
        fs::create_dir(&path).map_err(|source| CgroupError::Make {
            path: path.clone(),
            source,
        })?;
        let group = VmCgroup {
            path,
            removed: false,
        };
        if self.enforced.cpu {
            let quota = u64::from(limits.cpu_percent) * CPU_PERIOD / 100;
            group.limit("cpu.max", format!("{quota} {CPU_PERIOD}"))?;
        }
        if self.enforced.memory {
            group.limit("memory.max", limits.memory_bytes.to_string())?;
            // A kernel without swap has no such file, and needs none.
            if group.path.join("memory.swap.max").exists() {
                group.limit("memory.swap.max", "0".to_owned())?;
            }
        }
        if self.enforced.pids {
            group.limit("pids.max", limits.pids.to_string())?;
        }
        Ok(Some(group))
    }

    /// The groups that there are, of whichever process.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn list(&self) -> io::Result<Vec<PathBuf>> {
        let Some(home) = &self.home else {
            return Ok(Vec::new());
        };
        let entries = fs::read_dir(home)?.map(|entry| entry.map(|entry| entry.path()));
        let paths: io::Result<Vec<_>> = entries.collect();
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.parse::<SandboxId>().is_ok())
        };
        Ok(paths?.into_iter().filter(is_ours).collect())
    }

    /// Takes over the group of a VM that outlived its owner; `None` where there is none.
    #[must_use]
    pub fn adopt(&self, id: &SandboxId) -> Option<VmCgroup> {
        let path = self.home.as_ref()?.join(id.as_str());
        path.is_dir().then_some(VmCgroup {
            path,
            removed: false,
        })
    }

    /// Ends what is in the group of a dead owner's VM, and removes it. Blocks the thread.
    pub(crate) fn sweep(&self, id: &SandboxId) {
        if let Some(group) = self.adopt(id) {
            group.remove();
        }
    }
}

impl VmCgroup {
    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A handle by which a process is born in it.
    pub(super) fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    fn limit(&self, file: &str, value: String) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, &value).map_err(|source| CgroupError::Limit {
            path,
            value,
            source,
        })
    }

    /// Goes away without it, for a process that stays in it.
    pub(super) fn leave(mut self) {
        self.removed = true;
    }

    /// Ends what is in it, and removes it. Blocks the thread: the kernel lets go of a
    /// dead process's group a moment after it reports the death.
    pub(crate) fn remove(mut self) {
        self.removed = true;
        if ran_out_of_memory(&self.path) {
            warn!(cgroup = %self.path.display(), "the VM was ended by its memory limit");
        }
        for attempt in 0..REMOVAL_ATTEMPTS {
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(error) if attempt + 1 == REMOVAL_ATTEMPTS => {
                    warn!(cgroup = %self.path.display(), %error, "the next sweep removes a cgroup");
                }
                Err(error) => debug!(cgroup = %self.path.display(), %error, "still in use"),
            }
            if let Err(error) = fs::write(self.path.join("cgroup.kill"), "1") {
                debug!(cgroup = %self.path.display(), %error, "cannot end what is in it");
            }
            std::thread::sleep(Duration::from_millis(1 << attempt.min(8)));
        }
    }
}

impl Drop for VmCgroup {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        // Nothing was started in it, or the process is just being ended by whoever drops
        // this: no time to wait for it here.
        match fs::remove_dir(&self.path) {
            Ok(()) => {}
            Err(error) => {
                warn!(cgroup = %self.path.display(), %error, "the next sweep removes a cgroup");
            }
        }
    }
}

/// Makes the group that holds all others, and turns the controllers on for those.
fn prepare(mount: &Path) -> io::Result<PathBuf> {
    if statfs(mount)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(io::Error::other("it is no cgroup hierarchy of version 2"));
    }
    let home = mount.join(HOME);
    match fs::create_dir(&home) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    for controller in CONTROLLERS {
        for group in [mount, &home] {
            // One by one: the kernel takes a list as a whole or not at all.
            let control = group.join("cgroup.subtree_control");
            if let Err(error) = fs::write(&control, format!("+{controller}")) {
                debug!(control = %control.display(), controller, %error, "not to be had");
            }
        }
    }
    Ok(home)
}

fn enabled(home: &Path) -> Enforced {
    let enabled = fs::read_to_string(home.join("cgroup.subtree_control")).unwrap_or_default();
    let has = |wanted| enabled.split_whitespace().any(|name| name == wanted);
    Enforced {
        cpu: has("cpu"),
        memory: has("memory"),
        pids: has("pids"),
    }
}

fn ran_out_of_memory(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("memory.events")).unwrap_or_default();
    events
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .any(|count| count.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_leave_room_beside_the_guest() {
        let limits = Limits::of(Resources::new(2, 1024).unwrap());
        assert_eq!(limits.cpu_percent, 250);
        assert_eq!(limits.memory_bytes, (1024 + 32 + 128) << 20);
        assert_eq!(limits.pids, 66);
    }

    #[test]
    fn a_host_without_cgroups_is_told_apart_and_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::open(directory.path());
        assert_eq!(cgroups.enforced(), Enforced::default());
        let limits = Limits::of(Resources::default());
        let group = cgroups.create(&SandboxId::random(), limits).unwrap();
        assert!(group.is_none());
        assert!(cgroups.list().unwrap().is_empty());
        assert_eq!(
            cgroups.enforced().to_string(),
            "there is no limit on processor time, memory, number of processes"
        );
    }
}
