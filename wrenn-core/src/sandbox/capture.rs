//! Writing down what a sandbox is at one moment: memory, VM state and disk.
//!
//! ```text
//! guest syncs ─▶ programs frozen ─▶ VM stopped ─▶ memory and state written by the VMM
//!                                                 ─▶ disk flushed, its store copied
//!                     the VM may go on, or not ◀──┴─▶ hashed, synced, renamed: a build
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::warn;

use super::Sandbox;
use super::disk::FlushDiskError;
use super::record::RecordError;
use crate::snapshot::{
    BuildDetails, BuildStore, BuildWriter, Geometry, InvalidGeometry, MemoryFile, OpenStoreError,
    Snapshot, WriteBuildError,
};
use crate::vm::{ApiError, CreateSnapshot, LaunchSpec, SnapshotType};
use crate::{Chain, blocking, crash};

/// How long a guest may take to write down what its programs have written. One that takes
/// longer is stopped all the same: what it has not written yet is in its memory.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);
/// The same for letting its programs stand still.
const FREEZE_DEADLINE: Duration = Duration::from_secs(2);
/// Guests have ordinary pages.
const PAGE_BYTES: u64 = 4096;
/// Names of what a VMM writes, in the directory that it shares with the host.
const MEMORY: &str = "memory.bin";
const STATE: &str = "vmstate.bin";

/// Why a sandbox was not written down.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
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
    /// It could not be written down that its VMM has forgotten what changed.
    #[error("cannot write down what its VMM knows")]
    Record(#[from] RecordError),
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

/// How long each step took.
#[derive(Clone, Copy, Debug, Default)]
pub struct CaptureTimings {
    /// The guest's own writing down.
    pub sync: Duration,
    /// From the freezing of its programs until its memory and state are in files.
    pub memory: Duration,
    /// Flushing and copying the disk.
    pub disk: Duration,
    /// Reading, checking and syncing the build.
    pub publish: Duration,
}

/// All of a stopped sandbox, on its way to be a build.
#[derive(Debug)]
pub(super) struct Capture {
    writer: BuildWriter,
    parent: Option<Snapshot>,
    geometry: Geometry,
    details: BuildDetails,
    /// When its programs began to stand still.
    pub(super) stopped_at: Instant,
}

impl Sandbox {
    /// Stops the guest and brings all that it is into files that nobody writes to. The VM
    /// stays stopped, whatever comes of it.
    pub(super) async fn capture(
        &mut self,
        timings: &mut CaptureTimings,
    ) -> Result<Capture, CaptureError> {
        // A guest that stands still already writes nothing any more, and hears nothing.
        let since = Instant::now();
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
        let memory_mib = self.record.resources.memory_mib();
        let geometry = Geometry::new(u64::from(memory_mib) << 20, PAGE_BYTES)?;
        let details = BuildDetails {
            vmm: vmm.app_name,
            vmm_version: vmm.vmm_version,
            vcpus: self.record.resources.vcpus().into(),
            labels: BTreeMap::from([("template".to_owned(), self.record.template.clone())]),
        };
        let mut writer = BuildStore::open(&self.host.root)?.begin()?;

        let stopped_at = Instant::now();
        if self.halted.is_none() {
            self.freeze_programs().await;
        }
        crash::point("pause.frozen");
        let stopped = self.vm.api().pause().await;
        stopped.map_err(asking("stop the guest"))?;
        crash::point("pause.stopped");
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
        let (memory, state) = (shared.join(MEMORY), shared.join(STATE));
        forget(&memory)?;
        forget(&state)?;
        let written = self.vm.api().create_snapshot(&request, memory_mib).await;
        written.map_err(asking("write the guest down"))?;
        crash::point("pause.written");
        timings.memory = stopped_at.elapsed();

        let since = Instant::now();
        self.disk.flush().await?;
        let disk_name = self.disk.record().file_name();
        let disk = self.directory.file(disk_name);
        let taken = tokio::task::spawn_blocking(move || {
            writer.take_memory(&memory)?;
            writer.take_vmstate(&state)?;
            writer.copy_file(disk_name, &disk)?;
            Ok::<_, WriteBuildError>(writer)
        });
        let writer = taken.await.map_err(|_| CaptureError::Thread)??;
        timings.disk = since.elapsed();
        crash::point("pause.taken");
        Ok(Capture {
            writer,
            parent,
            geometry,
            details,
            stopped_at,
        })
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

    /// Removes what a capture that failed has left.
    pub(super) fn forget_capture(&self) {
        let shared = LaunchSpec::shared_in(self.directory.path());
        for name in [MEMORY, STATE] {
            if let Err(error) = forget(&shared.join(name)) {
                warn!(error = %Chain(&error), "what was written of a guest stays");
            }
        }
    }

    /// Lets the guest's programs stand still, so that none of them sees the wrong time or the
    /// random numbers of another when the guest comes back. It does without where it must.
    async fn freeze_programs(&self) {
        // Also where no answer comes: the guest may freeze them late.
        self.programs_frozen.store(true, Ordering::Relaxed);
        match tokio::time::timeout(FREEZE_DEADLINE, self.guest.freeze()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error = %Chain(&error), "programs of the guest go on"),
            Err(_) => warn!("the guest does not freeze its programs in time"),
        }
    }

    async fn sync_guest(&self) {
        match tokio::time::timeout(SYNC_DEADLINE, self.guest.sync()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error = %Chain(&error), "cannot sync the guest"),
            Err(_) => warn!("the guest does not sync in time; it is in its memory all the same"),
        }
    }
}

impl Capture {
    /// Makes it a build, which is on the disk when this returns.
    pub(super) async fn publish(
        self,
        timings: &mut CaptureTimings,
    ) -> Result<Snapshot, CaptureError> {
        let since = Instant::now();
        let published = tokio::task::spawn_blocking(move || {
            let memory = match &self.parent {
                Some(parent) => MemoryFile::Diff(parent),
                None => MemoryFile::Full(self.geometry),
            };
            self.writer.publish(memory, self.details)
        });
        let snapshot = published.await.map_err(|_| CaptureError::Thread)??;
        timings.publish = since.elapsed();
        Ok(snapshot)
    }
}

fn forget(path: &Path) -> Result<(), CaptureError> {
    match blocking::in_place(|| std::fs::remove_file(path)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CaptureError::Forget {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn asking(step: &'static str) -> impl FnOnce(ApiError) -> CaptureError {
    move |source| CaptureError::Vmm { step, source }
}
