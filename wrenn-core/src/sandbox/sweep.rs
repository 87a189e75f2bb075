//! Finding and removing what processes left that died without giving it back.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::{info, warn};

use super::directory::{DirectoryError, SandboxDirectory};
use super::host::Shared;
use super::record::SandboxRecord;
use crate::vm::Cgroups;
use crate::{RootDirectory, SandboxId};
use crate::{devicemapper, network};

/// How long a killed VMM may take to be gone.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);

/// Why what was left cannot be found or removed.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// A directory cannot be listed.
    #[error("cannot list {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A sandbox's directory cannot be taken over or removed.
    #[error("cannot clear away a dead sandbox")]
    Directory(#[from] DirectoryError),
    /// The network cannot be searched.
    #[error("cannot search the network")]
    Network(#[from] network::SweepError),
    /// The cgroups of VMs cannot be listed.
    #[error("cannot list the cgroups of VMs")]
    Cgroups(#[source] io::Error),
    /// The device mapper cannot be searched.
    #[error("cannot search for disks")]
    Disks(#[from] devicemapper::SweepError),
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

/// Everything on a host that belongs to sandboxes, in use or left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Files and directories below the root directory.
    pub files: Vec<PathBuf>,
    /// Processes whose command line names a sandbox of this root directory.
    pub processes: Vec<u32>,
    /// Cgroups of VMs of this root directory.
    pub cgroups: Vec<PathBuf>,
    /// Namespaces, links, elements of firewall sets and slots.
    pub network: network::Leftovers,
    /// Devices of the device mapper, their loops and nodes.
    pub disks: devicemapper::Leftovers,
}

impl Leftovers {
    /// Whether there is nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Removes the sandboxes of dead owners: their VMMs first, then their cgroups and files.
/// Their slots are the network's own to sweep.
pub(super) async fn sweep(root: &RootDirectory, cgroups: &Cgroups) -> Result<(), SweepError> {
    let (root, cgroups) = (root.clone(), cgroups.clone());
    tokio::task::spawn_blocking(move || sweep_now(&root, &cgroups))
        .await
        .map_err(|_| SweepError::Thread)?
}

fn sweep_now(root: &RootDirectory, cgroups: &Cgroups) -> Result<(), SweepError> {
    for id in sandbox_ids(root, cgroups)? {
        if outlives_its_owner(root, &id) {
            continue;
        }
        let Some(directory) = SandboxDirectory::take_over(root, id.clone())? else {
            continue;
        };
        for (pid, process) in vmm_processes(root, Some(&id))? {
            info!(sandbox_id = %id, pid, "ending the VMM of a dead owner");
            end(pid, &process);
        }
        cgroups.sweep(&id);
        directory.remove_now()?;
        info!(sandbox_id = %id, "swept");
    }
    Ok(())
}

/// Removes the VMM, cgroup, disk and slot of a sandbox that is to have none of them. The
/// caller owns its directory, so nobody else makes them anew.
pub(super) async fn strays(host: &Shared, id: &SandboxId) -> Result<(), SweepError> {
    let (root, cgroups, own) = (host.root.clone(), host.cgroups.clone(), id.clone());
    tokio::task::spawn_blocking(move || {
        for (pid, process) in vmm_processes(&root, Some(&own))? {
            info!(sandbox_id = %own, pid, "ending the VMM of a dead owner");
            end(pid, &process);
        }
        cgroups.sweep(&own);
        Ok::<_, SweepError>(())
    })
    .await
    .map_err(|_| SweepError::Thread)??;
    if let Some(mapper) = &host.mapper {
        let own = id.clone();
        mapper.sweep(move |other| *other != own).await?;
    }
    let own = id.clone();
    let others = move |owner: &str| owner != own.as_str();
    host.network.sweep(others).await?;
    Ok(())
}

/// Whether a sandbox is to be left alone whoever owned it.
fn outlives_its_owner(root: &RootDirectory, id: &SandboxId) -> bool {
    match SandboxRecord::read(&root.sandbox(id)) {
        Ok(record) => record.is_some_and(|record| record.outlives_its_owner()),
        Err(error) => {
            // What cannot be understood may be somebody's data.
            warn!(sandbox_id = %id, %error, "a sandbox is left as it is");
            true
        }
    }
}

/// Ids of the sandboxes that outlive their owner, in use or not.
pub(super) async fn orphans(root: &RootDirectory) -> Result<Vec<SandboxId>, SweepError> {
    let root = root.clone();
    tokio::task::spawn_blocking(move || {
        let mut ids = directories(&root)?;
        ids.retain(|id| outlives_its_owner(&root, id));
        Ok(ids)
    })
    .await
    .map_err(|_| SweepError::Thread)?
}

pub(super) async fn leftovers(host: &Shared) -> Result<Leftovers, SweepError> {
    let network = host.network.leftovers().await?;
    let (root, cgroups) = (host.root.clone(), host.cgroups.clone());
    tokio::task::spawn_blocking(move || {
        let files = entries(&root.sandboxes())?;
        let processes = vmm_processes(&root, None)?
            .into_iter()
            .map(|(pid, _)| pid)
            .collect();
        let cgroups = cgroups.list().map_err(SweepError::Cgroups)?;
        Ok(Leftovers {
            files,
            processes,
            cgroups,
            network,
            disks: devicemapper::leftovers_of(&root)?,
        })
    })
    .await
    .map_err(|_| SweepError::Thread)?
}

/// Ids of which a directory, a lock or a cgroup is there.
fn sandbox_ids(root: &RootDirectory, cgroups: &Cgroups) -> Result<Vec<SandboxId>, SweepError> {
    let mut ids = directories(root)?;
    ids.extend(cgroups.ids().map_err(SweepError::Cgroups)?);
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// Ids of which a directory or a lock is there.
pub(super) fn directories(root: &RootDirectory) -> Result<Vec<SandboxId>, SweepError> {
    let mut ids: Vec<SandboxId> = entries(&root.sandboxes())?
        .iter()
        .filter_map(|path| path.file_name()?.to_str())
        .filter_map(|name| name.strip_suffix(".lock").unwrap_or(name).parse().ok())
        .collect();
    ids.sort();
    ids.dedup();
    Ok(ids)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, SweepError> {
    let failed = |source| SweepError::List {
        path: directory.to_owned(),
        source,
    };
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Processes that were started with `--id <id>` and, as their own name, a path in the
/// directory of the sandbox that has this id under this root (see `LaunchSpec`). Each
/// comes with a handle that was taken before its command line was read, so that a reused
/// process id cannot be mistaken for it.
fn vmm_processes(
    root: &RootDirectory,
    id: Option<&SandboxId>,
) -> Result<Vec<(u32, OwnedFd)>, SweepError> {
    let pids = entries(Path::new("/proc"))?;
    let pids = pids
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok());
    Ok(pids
        .filter_map(|raw| {
            let handle = pidfd_open(Pid::from_raw(raw)?, PidfdFlags::empty()).ok()?;
            let line = std::fs::read(format!("/proc/{raw}/cmdline")).ok()?;
            let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            belongs(&args, root, id).then_some((u32::try_from(raw).ok()?, handle))
        })
        .collect())
}

fn belongs(args: &[&[u8]], root: &RootDirectory, id: Option<&SandboxId>) -> bool {
    let value_of = |flag: &[u8]| {
        let position = args.iter().position(|arg| *arg == flag)?;
        std::str::from_utf8(args.get(position + 1)?).ok()
    };
    let Some(found) = value_of(b"--id").and_then(|text| text.parse::<SandboxId>().ok()) else {
        return false;
    };
    args.first()
        .is_some_and(|name| Path::new(OsStr::from_bytes(name)).starts_with(root.sandbox(&found)))
        && id.is_none_or(|id| *id == found)
}

fn end(pid: u32, process: &OwnedFd) {
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return,
        Err(error) => {
            warn!(pid, %error, "cannot end a VMM");
            return;
        }
    }
    let deadline = Timespec {
        tv_sec: DEATH_DEADLINE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut waiting = [PollFd::new(process, PollFlags::IN)];
    match poll(&mut waiting, Some(&deadline)) {
        Ok(0) => warn!(pid, "a killed VMM is still there"),
        Ok(_) => {}
        Err(error) => warn!(pid, %error, "cannot wait for the end of a VMM"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_alone_is_swept_by_its_owner_and_by_nobody_else() {
        let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mut found = hierarchies.iter();
        let Some(hierarchy) = found.find(|path| path.join("cgroup.procs").exists()) else {
            eprintln!("skipped: this host has no cgroups of version 2");
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let (ours, theirs) = (directory.path().join("a"), directory.path().join("ab"));
        for root in [&ours, &theirs] {
            std::fs::create_dir_all(root.join("sandboxes")).unwrap();
        }
        let open = |root: &Path| (RootDirectory::new(root), Cgroups::open(hierarchy, root));
        let (our_root, our_cgroups) = open(&ours);
        let (their_root, their_cgroups) = open(&theirs);
        let limits = crate::vm::Limits::of(crate::vm::Resources::default());
        let group = our_cgroups.create(&SandboxId::random(), limits);
        // What a process leaves that ends while its VM does.
        let group = std::mem::ManuallyDrop::new(group.unwrap().unwrap());
        sweep_now(&their_root, &their_cgroups).unwrap();
        assert_eq!(our_cgroups.list().unwrap(), [group.path()]);
        sweep_now(&our_root, &our_cgroups).unwrap();
        assert!(!group.path().exists());
        assert!(sandbox_ids(&our_root, &our_cgroups).unwrap().is_empty());
    }

    #[test]
    fn only_our_own_vmms_are_recognised() {
        let root = RootDirectory::new("/srv/w");
        let id = SandboxId::random();
        let name = format!("/srv/w/sandboxes/{id}/vmm");
        let foreign = format!("/srv/other/sandboxes/{id}/vmm");
        let id_bytes = id.as_str().as_bytes();
        let ours: Vec<&[u8]> = vec![name.as_bytes(), b"--id", id_bytes];
        let theirs: Vec<&[u8]> = vec![foreign.as_bytes(), b"--id", id_bytes];
        assert!(belongs(&ours, &root, None));
        assert!(belongs(&ours, &root, Some(&id)));
        assert!(!belongs(&ours, &root, Some(&SandboxId::random())));
        assert!(!belongs(&theirs, &root, Some(&id)));
        assert!(!belongs(&ours[..2], &root, None));
    }
}
