//! From a running sandbox to one that lies on disk.
//!
//! ```text
//! running ─▶ guest syncs ─▶ VM paused ─▶ VMM writes memory and state ─┐
//!                                        disk flushed, store copied   ├─▶ build published
//!                                                                     ┘        │
//!            VM resumed ◀── a step before failed                               ▼
//!                                        paused ◀── written down ◀── VM gone, disk, slot
//! ```
//!
//! A build holds memory and disk of the same moment, and neither changes afterwards: what
//! resumes works on a copy of the disk. So whatever fails later, the pair is still there.
//! Until the build is published the VM can go on, and if the record cannot be written
//! afterwards, it does.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::directory::SandboxDirectory;
use super::disk::{FlushDiskError, RootDisk};
use super::paused::Paused;
use super::prepare;
use super::record::RecordError;
use super::{Keep, Remains, Sandbox, State};
use crate::guest::Command;
use crate::snapshot::{
    BuildDetails, BuildStore, Geometry, InvalidGeometry, MemoryFile, OpenStoreError, Snapshot,
    WriteBuildError,
};
use crate::vm::{ApiError, CreateSnapshot, LaunchSpec, SnapshotType};
use crate::{Chain, RootDirectory};

/// How long a guest may take to write down what its programs have written. One that takes
/// longer is paused all the same: what it has not written yet is in its memory.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);
/// Guests have ordinary pages.
const PAGE_BYTES: u64 = 4096;
/// Names of what a VMM writes, in the directory that it shares with the host.
const MEMORY: &str = "memory.bin";
const STATE: &str = "vmstate.bin";

/// Why a sandbox was not paused.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// It is one that does not outlive its owner.
    #[error("only a sandbox that is kept until it is destroyed can be paused")]
    NotKept,
    /// Its VM could not be stopped, or not be written down.
    #[error("the VMM cannot {step}")]
    Vmm {
        /// What was asked of it.
        step: &'static str,
        /// What it answered.
        #[source]
        source: ApiError,
    },
    /// What an earlier pause left could not be removed.
    #[error("cannot remove {path}")]
    Forget {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its memory has a size that no snapshot can have.
    #[error(transparent)]
    Geometry(#[from] InvalidGeometry),
    /// Its disk could not be kept.
    #[error("cannot keep its disk")]
    Disk(#[from] FlushDiskError),
    /// Builds cannot be kept on this host.
    #[error("cannot open the store of builds")]
    Store(#[from] OpenStoreError),
    /// The build could not be written.
    #[error("cannot write its snapshot")]
    Build(#[from] WriteBuildError),
    /// It could not be written down that it is paused.
    #[error("cannot write down that it is paused")]
    Record(#[from] RecordError),
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

/// A pause that failed, and what the sandbox is now.
#[derive(Debug)]
pub struct FailedPause {
    /// Why.
    pub error: PauseError,
    /// What is left: it runs as before, unless its VM could not go on.
    pub left: AfterPause,
}

/// What a failed pause leaves.
#[derive(Debug)]
pub enum AfterPause {
    /// It goes on as before.
    Running(Box<Sandbox>),
    /// Its VM is lost. Its data is there.
    Broken(Box<Remains>),
}

/// How long each step of a pause took.
#[derive(Clone, Copy, Debug, Default)]
pub struct PauseTimings {
    /// The guest's own writing down.
    pub sync: Duration,
    /// From the stop of the guest until its memory and state are in files.
    pub capture: Duration,
    /// Flushing the disk.
    pub disk: Duration,
    /// Copying the disk; reading, checking and syncing the build.
    pub publish: Duration,
    /// Giving back what it had.
    pub release: Duration,
    /// All of it.
    pub total: Duration,
}

impl Sandbox {
    /// Writes memory and disk down, and gives back everything else. A sandbox that was
    /// resumed before only writes what changed since.
    ///
    /// # Errors
    /// When a step fails; the error says what the sandbox is then.
    ///
    /// # Cancel safety
    /// A sandbox whose pause is dropped is lost, unless it was paused already. To be run on
    /// a task of its own.
    pub async fn pause(mut self) -> Result<Paused, FailedPause> {
        let begun = Instant::now();
        let mut timings = PauseTimings::default();
        if self.record.keep != Keep::UntilDestroyed {
            return Err(FailedPause {
                error: PauseError::NotKept,
                left: AfterPause::Running(Box::new(self)),
            });
        }
        let build = match self.capture(&mut timings).await {
            Ok(build) => build,
            Err(error) => return Err(self.go_on(error).await),
        };
        let before = self.record.clone();
        self.record.state = State::Paused;
        self.record.reason.clone_from(&self.halted);
        self.record.build = Some(build.id().clone());
        if let Err(error) = self.record.write_synced(self.directory.path()) {
            self.record = before;
            return Err(self.go_on(error.into()).await);
        }
        // From here on it is paused, whatever becomes of this program.
        self.directory.keep();
        let release = Instant::now();
        let Self {
            vm,
            disk,
            slot,
            directory,
            mut record,
            host,
            ..
        } = self;
        vm.kill().await;
        prepare::give_back(Some(disk), Some(slot)).await;
        clear(&directory);
        (record.vmm, record.slot) = (None, None);
        timings.release = release.elapsed();
        timings.total = begun.elapsed();
        info!(sandbox_id = %record.id, build_id = %build.id(), ?timings, "paused");
        Ok(Paused::new(host, directory, record, timings))
    }

    /// Makes a build of the sandbox, which is stopped afterwards.
    async fn capture(&mut self, timings: &mut PauseTimings) -> Result<Snapshot, PauseError> {
        let since = Instant::now();
        // A guest that was stopped already writes nothing any more.
        if self.halted.is_none() {
            self.sync_guest().await;
        }
        timings.sync = since.elapsed();

        let parent = self.open_parent().await;
        let kind = match parent {
            Some(_) => SnapshotType::Diff,
            None => SnapshotType::Full,
        };
        let vmm = self.vm.api().info().await;
        let vmm = vmm.map_err(asking("say who it is"))?;
        let since = Instant::now();
        self.vm
            .api()
            .pause()
            .await
            .map_err(asking("stop the guest"))?;
        let request = CreateSnapshot {
            snapshot_type: kind,
            snapshot_path: LaunchSpec::shared_path(STATE),
            mem_file_path: LaunchSpec::shared_path(MEMORY),
        };
        // From here on the VMM has forgotten which pages were dirty, and a later owner must
        // know that too.
        if self.record.dirty_since.take().is_some() {
            self.write_record()?;
        }
        // A file that a failed pause left would be updated, and not written anew.
        let shared = LaunchSpec::shared_in(self.directory.path());
        for name in [MEMORY, STATE] {
            forget(&shared.join(name))?;
        }
        let memory_mib = self.record.resources.memory_mib();
        let written = self.vm.api().create_snapshot(&request, memory_mib).await;
        written.map_err(asking("write the guest down"))?;
        timings.capture = since.elapsed();

        let since = Instant::now();
        self.disk.flush().await?;
        timings.disk = since.elapsed();

        let since = Instant::now();
        let details = BuildDetails {
            vmm: vmm.app_name,
            vmm_version: vmm.vmm_version,
            vcpus: self.record.resources.vcpus().into(),
            labels: BTreeMap::from([("template".to_owned(), self.record.template.clone())]),
        };
        let geometry = Geometry::new(u64::from(memory_mib) << 20, PAGE_BYTES)?;
        let disk_name = self.disk.record().file_name();
        let from = Written {
            memory: shared.join(MEMORY),
            state: shared.join(STATE),
            disk: self.directory.file(disk_name),
            disk_name,
        };
        let root = self.host.root.clone();
        let published = tokio::task::spawn_blocking(move || {
            let memory = match &parent {
                Some(parent) => MemoryFile::Diff(parent),
                None => MemoryFile::Full(geometry),
            };
            publish(&root, &from, memory, details)
        });
        let build = published.await.map_err(|_| PauseError::Thread)??;
        timings.publish = since.elapsed();
        Ok(build)
    }

    /// The build since which the VMM knows which pages changed. Without one all of memory
    /// is written, which is always right.
    async fn open_parent(&self) -> Option<Snapshot> {
        let id = self.record.dirty_since.clone()?;
        let root = self.host.root.clone();
        let opened = tokio::task::spawn_blocking(move || Snapshot::open(&root, &id)).await;
        opened
            .ok()?
            .inspect_err(|error| {
                warn!(error = %Chain(error), "the snapshot before is lost; all is written anew");
            })
            .ok()
    }

    async fn sync_guest(&self) {
        let sync = Command::new("sync").user("root").timeout(SYNC_DEADLINE);
        match tokio::time::timeout(SYNC_DEADLINE, self.guest.output(&sync)).await {
            Ok(Ok(output)) if output.status.shell_code() == 0 => {}
            Ok(Ok(output)) => warn!(code = output.status.shell_code(), "sync in the guest"),
            Ok(Err(error)) => warn!(error = %Chain(&error), "cannot sync the guest"),
            Err(_) => warn!("the guest does not sync in time; it is in its memory all the same"),
        }
    }

    /// Lets the guest go on after a pause that failed, unless it was halted before.
    async fn go_on(self, error: PauseError) -> FailedPause {
        warn!(sandbox_id = %self.id(), error = %Chain(&error), "cannot be paused");
        let shared = LaunchSpec::shared_in(self.directory.path());
        for name in [MEMORY, STATE] {
            if let Err(error) = forget(&shared.join(name)) {
                warn!(error = %Chain(&error), "what was written of a guest stays");
            }
        }
        if self.halted.is_some() {
            let left = AfterPause::Running(Box::new(self));
            return FailedPause { error, left };
        }
        let left = match self.vm.api().resume().await {
            Ok(()) => {
                if let Err(error) = self.write_record() {
                    warn!(error = %Chain(&error), "what a later owner must know is out of date");
                }
                AfterPause::Running(Box::new(self))
            }
            Err(resume) => {
                let reason = format!(
                    "it could not be paused ({}) and its VM does not go on ({})",
                    Chain(&error),
                    Chain(&resume)
                );
                AfterPause::Broken(Box::new(self.fail(reason).await))
            }
        };
        FailedPause { error, left }
    }
}

/// The files that make a build.
struct Written {
    memory: PathBuf,
    state: PathBuf,
    disk: PathBuf,
    disk_name: &'static str,
}

fn publish(
    root: &RootDirectory,
    from: &Written,
    memory: MemoryFile<'_>,
    details: BuildDetails,
) -> Result<Snapshot, PauseError> {
    let store = BuildStore::open(root)?;
    let mut writer = store.begin()?;
    writer.take_memory(&from.memory)?;
    writer.take_vmstate(&from.state)?;
    writer.copy_file(from.disk_name, &from.disk)?;
    Ok(writer.publish(memory, details)?)
}

/// Notes that the sandbox may have more than its files from now on.
pub(super) fn begin_to_have(directory: &SandboxDirectory) -> io::Result<()> {
    let shared = LaunchSpec::shared_in(directory.path());
    std::fs::create_dir_all(shared)
}

/// Whether it may have more than its files.
pub(super) fn may_have_more(directory: &SandboxDirectory) -> bool {
    LaunchSpec::shared_in(directory.path()).exists()
}

/// Removes the files that only a running sandbox needs; all else it had is given back. The
/// disk is in the build.
pub(super) fn clear(directory: &SandboxDirectory) {
    if let Err(error) = RootDisk::remove_files(directory) {
        warn!(sandbox_id = %directory.id(), error = %Chain(&error), "the disk of a paused sandbox stays");
    }
    let shared = LaunchSpec::shared_in(directory.path());
    if let Err(error) = std::fs::remove_dir_all(&shared)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(sandbox_id = %directory.id(), %error, "what a VMM wrote stays");
    }
}

fn forget(path: &Path) -> Result<(), PauseError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PauseError::Forget {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn asking(step: &'static str) -> impl FnOnce(ApiError) -> PauseError {
    move |source| PauseError::Vmm { step, source }
}
