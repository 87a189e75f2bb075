//! What one VM may take of the host: a cgroup of version 2 for each.
//!
//! ```text
//! /sys/fs/cgroup/                 cgroup.subtree_control: +cpu +io +memory +pids
//! └─ wrenn/                       the same
//!    └─ <sandbox id>/             cpu.max io.max memory.max memory.swap.max pids.max
//!                                 the VMM is born in it
//! ```
//!
//! A host that has no such hierarchy, or lacks a controller, still runs sandboxes:
//! [`Cgroups::enforced`] says what holds, and one warning says what doesn't.
//!
//! A group carries the root directory of its owner as an attribute, since other owners on
//! the same host have groups beside it. So one that outlived its sandbox is found.
//!
//! The limits are ceilings for a VMM that misbehaves, with room for what one takes beside
//! its guest. A guest is held by its number of vCPUs and its memory already.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use rustix::fs::{XattrFlags, getxattr, major, minor, setxattr};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::Resources;
use crate::{Chain, SandboxId};

/// Name of the group that holds those of all VMs.
const HOME: &str = "wrenn";
/// Controllers that are turned on.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// Microseconds in which processor time is counted, the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// The attribute that names a group's owner.
const OWNER: &str = "user.wrenn.root";
/// How often the removal of a group is tried while the kernel buries its process.
const REMOVAL_ATTEMPTS: u32 = 12;
/// The same where nothing should be in it.
const DROP_ATTEMPTS: u32 = 5;
/// How long what was dropped may take to be gone.
const SETTLING_DEADLINE: Duration = Duration::from_secs(10);

/// Where the groups of VMs are made.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// The group that holds them; `None` where the host has no hierarchy of version 2.
    home: Option<PathBuf>,
    /// The root directory that its groups belong to.
    owner: PathBuf,
    /// The disk that the root directory lies on, as `io.max` names it.
    disk: Option<String>,
    enforced: Enforced,
    /// How many groups are being made or given back right now.
    busy: Arc<watch::Sender<usize>>,
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
    /// What is read from the disk and written to it in a second.
    pub disk: bool,
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
    /// Disk throughput, if it is limited.
    pub disk: Option<DiskLimits>,
}

/// What one VM may read from the disk in a second, and the same again for what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Bytes.
    pub bytes_per_second: u64,
    /// Requests.
    pub requests_per_second: u64,
}

impl Default for DiskLimits {
    /// As much as a good disk of one's own, so that some are needed to fill the host's.
    fn default() -> Self {
        Self {
            bytes_per_second: 256 << 20,
            requests_per_second: 20_000,
        }
    }
}

impl DiskLimits {
    /// The line of `io.max` for a disk.
    fn line(self, disk: &str) -> String {
        let Self {
            bytes_per_second: bytes,
            requests_per_second: requests,
        } = self;
        format!("{disk} rbps={bytes} wbps={bytes} riops={requests} wiops={requests}")
    }
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
    /// Whose it is.
    #[error("cannot mark the cgroup {path} as ours")]
    Mark {
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
    tally: Tally,
    /// Whether it stays without us.
    left: bool,
}

/// Counts one group among those that are being made or given back, unless it is in use.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    stage: Arc<Mutex<Stage>>,
    busy: Arc<watch::Sender<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is being made or given back.
    Busy,
    /// Somebody holds the VM that is in it.
    InUse,
    /// It is given back, or left to a sweep. Nothing follows.
    Gone,
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
            disk: None,
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
            (self.disk, "disk throughput"),
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
    /// Prepares the hierarchy at `mount`, usually `/sys/fs/cgroup`, for the sandboxes of
    /// the root directory `owner`. Warns where a limit cannot be held.
    #[must_use]
    pub fn open(mount: &Path, owner: &Path) -> Self {
        let prepared = prepare(mount);
        let disk = disk_below(owner);
        let enforced = match &prepared {
            Ok(home) => enabled(home, disk.is_some()),
            Err(_) => Enforced::default(),
        };
        match &prepared {
            Ok(_) if enforced.missing().is_empty() => {}
            Ok(_) => {
                warn!(at = %mount.display(), "{enforced} of a sandbox: a cgroup controller cannot be had (see `wrenn doctor`)");
            }
            Err(error) => {
                warn!(at = %mount.display(), %error, "{enforced} of a sandbox: there are no cgroups of version 2 (see `wrenn doctor`)");
            }
        }
        Self {
            home: prepared.ok(),
            owner: owner.to_owned(),
            disk,
            enforced,
            busy: Arc::new(watch::Sender::new(0)),
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
        let group = self.group(path);
        let owner = self.owner.as_os_str().as_bytes();
        setxattr(&group.path, OWNER, owner, XattrFlags::empty()).map_err(|errno| {
            CgroupError::Mark {
                path: group.path.clone(),
                source: errno.into(),
            }
        })?;
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
        if let (true, Some(disk), Some(limit)) = (self.enforced.disk, &self.disk, limits.disk) {
            // Not every kernel and not every kind of disk knows such limits, which cannot be
            // told beforehand.
            if let Err(error) = group.limit("io.max", limit.line(disk)) {
                warn!(sandbox_id = %id, error = %Chain(&error), "its disk throughput is not limited");
            }
        }
        Ok(Some(group))
    }

    /// The groups of this owner, of whichever process.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn list(&self) -> io::Result<Vec<PathBuf>> {
        let Some(home) = &self.home else {
            return Ok(Vec::new());
        };
        let entries = fs::read_dir(home)?.map(|entry| entry.map(|entry| entry.path()));
        let paths: io::Result<Vec<_>> = entries.collect();
        Ok(paths?
            .into_iter()
            .filter(|path| id_of(path).is_some() && self.is_ours(path))
            .collect())
    }

    /// The sandboxes of this owner that have a group.
    pub(crate) fn ids(&self) -> io::Result<Vec<SandboxId>> {
        Ok(self.list()?.iter().filter_map(|path| id_of(path)).collect())
    }

    /// Takes over the group of a VM that outlived its owner; `None` where there is none.
    #[must_use]
    pub fn adopt(&self, id: &SandboxId) -> Option<VmCgroup> {
        let path = self.home.as_ref()?.join(id.as_str());
        path.is_dir().then(|| self.group(path))
    }

    /// Ends what is in the group of a dead owner's VM, and removes it. Blocks the thread.
    pub(crate) fn sweep(&self, id: &SandboxId) {
        if let Some(group) = self.adopt(id) {
            group.remove();
        }
    }

    /// Waits until the groups of what was dropped are removed.
    pub(crate) async fn settled(&self) {
        let mut busy = self.busy.subscribe();
        let idle = busy.wait_for(|count| *count == 0);
        if tokio::time::timeout(SETTLING_DEADLINE, idle).await.is_err() {
            warn!("VMs that were ended are still there; the next sweep removes their cgroups");
        }
    }

    fn group(&self, path: PathBuf) -> VmCgroup {
        self.busy.send_modify(|count| *count += 1);
        VmCgroup {
            path,
            tally: Tally {
                stage: Arc::new(Mutex::new(Stage::Busy)),
                busy: Arc::clone(&self.busy),
            },
            left: false,
        }
    }

    fn is_ours(&self, group: &Path) -> bool {
        let owner = self.owner.as_os_str().as_bytes();
        // One byte more, so that a longer path that begins like ours is not taken for it.
        let mut marked = vec![0_u8; owner.len() + 1];
        getxattr(group, OWNER, marked.as_mut_slice())
            .is_ok_and(|length| marked.get(..length) == Some(owner))
    }
}

impl Tally {
    /// Notes what becomes of the group.
    pub(super) fn set(&self, next: Stage) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        match (*stage, next) {
            (Stage::Gone, _) => return,
            (Stage::Busy, Stage::InUse | Stage::Gone) => {
                self.busy.send_modify(|count| *count -= 1);
            }
            (Stage::InUse, Stage::Busy) => self.busy.send_modify(|count| *count += 1),
            (Stage::Busy, Stage::Busy) | (Stage::InUse, Stage::InUse | Stage::Gone) => {}
        }
        *stage = next;
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
        self.left = true;
    }

    /// By which its holder says whether it is in use.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Ends what is in it, and removes it. Blocks the thread: the kernel lets go of a
    /// dead process's group a moment after it reports the death.
    pub(crate) fn remove(self) {
        if ran_out_of_memory(&self.path) {
            warn!(cgroup = %self.path.display(), "the VM was ended by its memory limit");
        }
        if self.try_remove() {
            return;
        }
        if let Err(error) = fs::write(self.path.join("cgroup.kill"), "1") {
            debug!(cgroup = %self.path.display(), %error, "cannot end what is in it");
        }
        self.try_often(REMOVAL_ATTEMPTS);
    }

    fn try_often(&self, attempts: u32) {
        for attempt in 0..attempts {
            if self.try_remove() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1 << attempt.min(8)));
        }
        warn!(cgroup = %self.path.display(), "the next sweep removes a cgroup");
    }

    fn try_remove(&self) -> bool {
        match fs::remove_dir(&self.path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                debug!(cgroup = %self.path.display(), %error, "a cgroup is still in use");
                false
            }
        }
    }
}

impl Drop for VmCgroup {
    fn drop(&mut self) {
        if !self.left && self.path.exists() {
            // Nothing was started in it, or whoever drops this is just ending the process.
            self.try_often(DROP_ATTEMPTS);
        }
        self.tally.set(Stage::Gone);
    }
}

/// The sandbox that a group is named after.
fn id_of(group: &Path) -> Option<SandboxId> {
    group.file_name()?.to_str()?.parse().ok()
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

/// The disk below a path, which need not be there yet; `None` where the file system lies on
/// none that throughput can be limited of. The kernel limits whole disks, no partitions.
fn disk_below(path: &Path) -> Option<String> {
    let device = path
        .ancestors()
        .find_map(|path| fs::metadata(path).ok())?
        .dev();
    let number = format!("{}:{}", major(device), minor(device));
    let device = fs::canonicalize(format!("/sys/dev/block/{number}")).ok()?;
    if !device.join("partition").exists() {
        return Some(number);
    }
    let number = fs::read_to_string(device.parent()?.join("dev")).ok()?;
    Some(number.trim().to_owned())
}

fn enabled(home: &Path, has_disk: bool) -> Enforced {
    let enabled = fs::read_to_string(home.join("cgroup.subtree_control")).unwrap_or_default();
    let has = |wanted| enabled.split_whitespace().any(|name| name == wanted);
    Enforced {
        cpu: has("cpu"),
        memory: has("memory"),
        pids: has("pids"),
        disk: has("io") && has_disk,
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
    fn a_disk_is_limited_in_both_directions() {
        let limits = DiskLimits {
            bytes_per_second: 1 << 20,
            requests_per_second: 100,
        };
        let line = limits.line("254:0");
        assert_eq!(line, "254:0 rbps=1048576 wbps=1048576 riops=100 wiops=100");
        assert_eq!(disk_below(Path::new("/proc/none")), None);
    }

    #[test]
    fn a_host_without_cgroups_is_told_apart_and_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::open(directory.path(), directory.path());
        assert_eq!(cgroups.enforced(), Enforced::default());
        let limits = Limits::of(Resources::default());
        let group = cgroups.create(&SandboxId::random(), limits).unwrap();
        assert!(group.is_none());
        assert!(cgroups.list().unwrap().is_empty());
        assert_eq!(
            cgroups.enforced().to_string(),
            "there is no limit on processor time, memory, number of processes, disk throughput"
        );
    }
}
