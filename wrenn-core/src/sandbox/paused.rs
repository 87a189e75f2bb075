//! A sandbox that lies on disk, and its way back.
//!
//! ```text
//! paused ─┬─ disk      copied out of the build, device made      ┐
//!         ├─ slot      any: the guest sees the same in each      ├ at the same time
//!         └─ cgroup                                              ┘
//!            VMM loads the snapshot and the guest goes on
//!            guest told the time, fresh entropy, a fresh token ─▶ running
//! ```
//!
//! Whatever fails, the sandbox is paused as before: the build was only read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::create::{check_memory, first_words};
use super::directory::SandboxDirectory;
use super::disk::{RestoreRootDiskError, RootDisk};
use super::host::Shared;
use super::pause::{self, PauseTimings};
use super::prepare::{self, Prepared, prepare, vm_user};
use super::record::{RecordError, SandboxRecord};
use super::{CreateSandboxError, DestroyError, Remains, Sandbox, SandboxConfig, State, Timings};
use crate::guest::{AccessToken, ENVD_PORT, GuestClient, GuestError, UnhealthyError};
use crate::network::{EgressPolicy, NetworkSlot};
use crate::snapshot::{
    BuildId, BuildStore, CompactError, OpenSnapshotError, OpenStoreError, Snapshot,
};
use crate::vm::{
    Device, ExitReason, JailFile, JailSpec, LaunchSpec, LoadSnapshot, MemoryBackend,
    NetworkOverride, StartVmError, Vm, WrittenBy,
};
use crate::{Chain, RootDirectory, SandboxId};

/// A paused sandbox. It uses nothing but the room of its files.
#[must_use = "dropping it leaves its files, for the next owner to find"]
#[derive(Debug)]
pub struct Paused {
    host: Arc<Shared>,
    directory: SandboxDirectory,
    record: SandboxRecord,
    timings: PauseTimings,
}

/// Why a sandbox was not resumed. It is paused as before.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// Its snapshot cannot be opened.
    #[error("cannot open its snapshot")]
    Open(#[from] OpenSnapshotError),
    /// There is no disk to resume with.
    #[error("nothing is written down of what its disk is made of")]
    NoDisk,
    /// There is no snapshot to resume.
    #[error("nothing is written down of what it is to be resumed from")]
    NoBuild,
    /// Its memory lies in several files, and could not be brought into one.
    #[error("cannot bring its memory into one file")]
    Compact(#[from] CompactError),
    /// The same.
    #[error("cannot open the store of builds")]
    Store(#[from] OpenStoreError),
    /// Its disk could not be made again.
    #[error("cannot make its disk again")]
    Disk(#[from] RestoreRootDiskError),
    /// Slot or cgroup could not be made, or there is no memory for it.
    #[error("cannot prepare its VM")]
    Prepare(#[from] CreateSandboxError),
    /// Nothing can be made in its directory.
    #[error("cannot make a directory in {path}")]
    Directory {
        /// The sandbox's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its VM did not load the snapshot.
    #[error("cannot start its VM")]
    Vm(#[from] StartVmError),
    /// Its guest does not answer.
    #[error("the guest does not answer")]
    Unhealthy(#[from] UnhealthyError),
    /// Its VM ended.
    #[error("the VM ended while the guest was resumed ({0})")]
    Ended(ExitReason),
    /// Its guest could not be told what it must know.
    #[error("cannot set up the guest")]
    Init(#[from] GuestError),
    /// It could not be written down what it is.
    #[error("cannot write down that it runs")]
    Record(#[from] RecordError),
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

/// A resume that failed, and the sandbox, paused as before.
#[derive(Debug)]
pub struct FailedResume {
    /// Why.
    pub error: ResumeError,
    /// The sandbox.
    pub paused: Paused,
}

impl Paused {
    pub(super) fn new(
        host: Arc<Shared>,
        directory: SandboxDirectory,
        record: SandboxRecord,
        timings: PauseTimings,
    ) -> Self {
        let mut directory = directory;
        directory.keep();
        Self {
            host,
            directory,
            record,
            timings,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        self.directory.id()
    }

    /// What it was made from and to be.
    #[must_use]
    pub fn config(&self) -> SandboxConfig {
        self.record.config()
    }

    /// When its creation began, in RFC 3339.
    #[must_use]
    pub fn created_at(&self) -> &str {
        &self.record.created_at
    }

    /// Why it was paused, if its host could not let it go on.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.record.reason.as_deref()
    }

    /// The build that it is resumed from.
    #[must_use]
    pub fn build(&self) -> Option<&BuildId> {
        self.record.build.as_ref()
    }

    /// How long each step of its pause took; zeros where another program paused it.
    #[must_use]
    pub fn timings(&self) -> &PauseTimings {
        &self.timings
    }

    /// Changes how long it may be idle once it runs again, zero for any length.
    ///
    /// # Errors
    /// When that cannot be written down; the old length holds then.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError> {
        let before = std::mem::replace(&mut self.record.timeout_sec, timeout.as_secs());
        self.record
            .write_synced(self.directory.path())
            .inspect_err(|_| self.record.timeout_sec = before)
    }

    /// Changes what its guest may connect to once it runs again.
    ///
    /// # Errors
    /// When that cannot be written down; the old policy holds then.
    pub fn set_egress(&mut self, policy: EgressPolicy) -> Result<(), RecordError> {
        let before = std::mem::replace(&mut self.record.egress, policy);
        self.record
            .write_synced(self.directory.path())
            .inspect_err(|_| self.record.egress = before)
    }

    /// Where everything lies.
    pub(crate) fn root(&self) -> &RootDirectory {
        &self.host.root
    }

    /// Goes away without it; [`Host::adopt`](super::Host::adopt) finds it again.
    pub fn leave(self) {
        self.directory.leave();
    }

    /// Removes its data. Its build goes with the next collection of garbage.
    ///
    /// # Errors
    /// When the files cannot be removed.
    pub async fn destroy(mut self) -> Result<(), DestroyError> {
        self.record.state = State::Stopped;
        if let Err(error) = self.record.write(self.directory.path()) {
            warn!(sandbox_id = %self.id(), %error, "a paused sandbox that is being destroyed");
        }
        let id = self.id().clone();
        let removed = self.directory.remove().await;
        removed.map_err(|source| DestroyError::Directory { id, source })
    }

    /// Lets it go on where it was paused.
    ///
    /// # Errors
    /// When a step fails; the error holds the sandbox, paused as before.
    pub async fn resume(self) -> Result<Sandbox, FailedResume> {
        let begun = Instant::now();
        let mut record = self.record.clone();
        match bring_back(&self.host, &self.directory, &mut record, begun).await {
            Ok(back) => {
                info!(sandbox_id = %record.id, timings = ?back.timings, "resumed");
                Ok(Sandbox {
                    vm: back.vm,
                    disk: back.disk,
                    slot: back.slot,
                    directory: self.directory,
                    guest: back.guest,
                    record,
                    timings: back.timings,
                    host: self.host,
                    halted: None,
                })
            }
            Err(error) => {
                warn!(sandbox_id = %record.id, error = %Chain(&error), "cannot be resumed");
                pause::clear(&self.directory);
                Err(FailedResume {
                    error,
                    paused: self,
                })
            }
        }
    }

    /// It can never be resumed: what is left is broken.
    pub fn fail(self, reason: String) -> Remains {
        Remains::write(self.directory, self.record, reason)
    }
}

/// What a paused sandbox does not have.
struct Back {
    vm: Vm,
    disk: RootDisk,
    slot: NetworkSlot,
    guest: GuestClient,
    timings: Timings,
}

async fn bring_back(
    host: &Arc<Shared>,
    directory: &SandboxDirectory,
    record: &mut SandboxRecord,
    begun: Instant,
) -> Result<Back, ResumeError> {
    let mut timings = Timings::default();
    check_memory(record.resources)?;
    let id = record.build.clone().ok_or(ResumeError::NoBuild)?;
    let root = host.root.clone();
    let opened = tokio::task::spawn_blocking(move || open_in_one_file(&root, &id)).await;
    let (snapshot, memory) = opened.map_err(|_| ResumeError::Thread)??;
    let config = record.config();
    pause::begin_to_have(directory).map_err(|source| ResumeError::Directory {
        path: directory.path().to_owned(),
        source,
    })?;
    let disk = restore_disk(host, directory, record, &snapshot);
    let Prepared { disk, slot, cgroup } = prepare(host, &config, disk, &mut timings).await?;

    let launched = Instant::now();
    let spec = LaunchSpec {
        binary: host.vmm.clone(),
        id: record.id.clone(),
        directory: directory.path().to_owned(),
        network_namespace: Some(slot.namespace_path()),
        jail: JailSpec {
            user: vm_user(host, &slot),
            files: vec![
                JailFile::writable(disk.path(), "rootfs.ext4"),
                state_file(&snapshot),
                memory_file(&memory),
            ],
            devices: vec![Device::Kvm, Device::NetTun],
        },
        cgroup,
    };
    let load = LoadSnapshot {
        snapshot_path: state_file(&snapshot).inside(),
        mem_backend: MemoryBackend::File(memory_file(&memory).inside()),
        track_dirty_pages: true,
        resume_vm: true,
        network_overrides: vec![NetworkOverride {
            iface_id: "eth0".to_owned(),
            host_dev_name: slot.tap_name().to_owned(),
        }],
    };
    let details = &snapshot.manifest().details;
    let wrote = WrittenBy {
        vmm: details.vmm.clone(),
        version: details.vmm_version.clone(),
    };
    let vm = match Vm::restore(spec, &load, &wrote).await {
        Ok(vm) => vm,
        Err(error) => {
            prepare::give_back(Some(disk), Some(slot)).await;
            return Err(error.into());
        }
    };
    timings.vmm = launched.elapsed();
    record.vmm = vm.identity().ok();
    record.slot = Some(slot.number().get());
    record.disk = Some(disk.record());
    let address = (slot.reachable_address(), ENVD_PORT).into();
    match greet(host, record, &config, &vm, address, &mut timings, launched).await {
        Ok(guest) => {
            record.state = State::Running;
            record.reason = None;
            record.build = Some(snapshot.id().clone());
            record.dirty_since = Some(snapshot.id().clone());
            // Synced: the build of before may be collected from now on, and after a loss of
            // power an older record must not name it.
            if let Err(error) = record.write_synced(directory.path()) {
                vm.kill().await;
                prepare::give_back(Some(disk), Some(slot)).await;
                return Err(error.into());
            }
            timings.total = begun.elapsed();
            Ok(Back {
                vm,
                disk,
                slot,
                guest,
                timings,
            })
        }
        Err(error) => {
            vm.kill().await;
            prepare::give_back(Some(disk), Some(slot)).await;
            Err(error)
        }
    }
}

/// Opens a build whose memory one file holds, and says which. Where it is in the files of
/// several, a build with all of it is made first.
fn open_in_one_file(
    root: &RootDirectory,
    id: &BuildId,
) -> Result<(Snapshot, PathBuf), ResumeError> {
    let snapshot = Snapshot::open(root, id)?;
    if let Some(memory) = snapshot.mappable() {
        let memory = memory.to_owned();
        return Ok((snapshot, memory));
    }
    let whole = BuildStore::open(root)?.compact(id)?;
    // A full build is its own memory file as it is.
    let memory = whole.layers()[0].path().to_owned();
    Ok((whole, memory))
}

async fn restore_disk(
    host: &Shared,
    directory: &SandboxDirectory,
    record: &SandboxRecord,
    snapshot: &Snapshot,
) -> Result<RootDisk, ResumeError> {
    let disk = record.disk.as_ref().ok_or(ResumeError::NoDisk)?;
    let saved = snapshot.directory().join(disk.file_name());
    Ok(RootDisk::restore(host.mapper.as_ref(), directory, disk, &saved).await?)
}

fn state_file(snapshot: &Snapshot) -> JailFile {
    JailFile::read_only(snapshot.vmstate(), "vmstate.bin")
}

fn memory_file(memory: &Path) -> JailFile {
    JailFile::read_only(memory, "memory.bin")
}

/// Waits for the guest's daemon, which knows the token from before, and tells it what has
/// changed meanwhile.
async fn greet(
    host: &Shared,
    record: &mut SandboxRecord,
    config: &SandboxConfig,
    vm: &Vm,
    address: SocketAddr,
    timings: &mut Timings,
    launched: Instant,
) -> Result<GuestClient, ResumeError> {
    let mut guest = GuestClient::new(address, record.token.clone().map(AccessToken::new))?;
    tokio::select! {
        healthy = guest.wait_healthy(host.boot_deadline) => healthy?,
        reason = vm.exited() => return Err(ResumeError::Ended(reason)),
    }
    timings.healthy = launched.elapsed();
    let begun = Instant::now();
    let request = first_words(config, &record.setup);
    tokio::select! {
        told = guest.init(&request) => told?,
        reason = vm.exited() => return Err(ResumeError::Ended(reason)),
    }
    timings.init = begun.elapsed();
    record.token = request.access_token;
    Ok(guest)
}
