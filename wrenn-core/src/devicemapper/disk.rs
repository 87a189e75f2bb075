//! One disk: how it is put together, watched, and given back.

use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::control::{ControlError, Key};
use super::flatten::{self, FlattenError};
use super::loops::LoopError;
use super::pieces::{Pieces, RemoveDiskError, retire};
use super::shared::{Shared, ThreadLost, blocking};
use super::store::{self, ReadStoreError, StoreDamage, StoreShape};
use super::table::{DeviceNumber, SECTOR, SnapshotTable, StoreStatus, UnknownLine};
use super::watch::{self, Alarm};
use crate::SandboxId;

/// Why a disk could not be put together from its two files.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum AssembleError {
    #[error("cannot attach a file of the disk")]
    Loop(#[from] LoopError),
    #[error("base image {path} has {bytes} bytes, which is no whole number of sectors")]
    Size { path: PathBuf, bytes: u64 },
    #[error("the disk of {0} is there already; adopt it, or sweep it if its owner died")]
    Taken(SandboxId),
    #[error("cannot make the disk")]
    Device(#[source] ControlError),
    #[error("cannot make device node {path}")]
    Node {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why a disk could not be created. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum CreateDiskError {
    #[error("cannot make store {path}")]
    Store {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot assemble the disk of {id}")]
    Assemble {
        id: SandboxId,
        #[source]
        source: AssembleError,
    },
    #[error("cannot create the disk of a sandbox")]
    Thread(#[from] ThreadLost),
}

/// Why a disk could not be restored. Its store is as it was.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum RestoreDiskError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("store {path} cannot be used")]
    Damaged {
        path: PathBuf,
        #[source]
        damage: StoreDamage,
    },
    #[error("cannot assemble the disk of {id}")]
    Assemble {
        id: SandboxId,
        #[source]
        source: AssembleError,
    },
    #[error("cannot restore the disk of a sandbox")]
    Thread(#[from] ThreadLost),
}

/// Why the disk of a dead owner could not be adopted. It is as it was.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum AdoptDiskError {
    #[error("there is no disk of {0}; restore it from its store")]
    Missing(SandboxId),
    #[error("the disk of {0} was never finished; sweep it, then restore it from its store")]
    Unfinished(SandboxId),
    #[error("cannot read the table of the disk of {id}")]
    Control {
        id: SandboxId,
        #[source]
        source: ControlError,
    },
    #[error("the disk of {id} is of another kind")]
    Table {
        id: SandboxId,
        #[source]
        source: UnknownLine,
    },
    #[error("the disk of {id} is not made of the files that it should be")]
    Loop {
        id: SandboxId,
        #[source]
        source: LoopError,
    },
    #[error("cannot make device node {path}")]
    Node {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot adopt the disk of a sandbox")]
    Thread(#[from] ThreadLost),
}

impl AdoptDiskError {
    /// Whether the disk is gone for certain, or another's.
    pub(crate) const fn is_gone(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Unfinished(_) | Self::Table { .. } => true,
            Self::Control { .. } | Self::Loop { .. } | Self::Node { .. } | Self::Thread(_) => false,
        }
    }
}

/// Why it is not known how full a disk is.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum DiskStatusError {
    #[error("cannot ask for the status of a disk")]
    Control(#[from] ControlError),
    #[error("cannot understand the status of a disk")]
    Line(#[from] UnknownLine),
    #[error("cannot look at store {path}")]
    Store {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot look at a disk")]
    Thread(#[from] ThreadLost),
}

/// Why what was written to a disk may not be safe yet.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum SyncDiskError {
    #[error("cannot flush {path}")]
    Flush {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot flush the disk of a sandbox")]
    Thread(#[from] ThreadLost),
}

/// What a disk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// What the store's file takes on the host: blocks × 512, whatever its length says.
    pub allocated_bytes: u64,
    /// How full it is as the kernel counts.
    pub store: StoreStatus,
}

/// The root disk of a sandbox: a block device that reads from a base image what was never
/// written, and keeps in a store what was.
#[must_use = "dropping a disk gives it back in the background"]
#[derive(Debug)]
pub struct SnapshotDisk {
    shared: Arc<Shared>,
    id: SandboxId,
    node: PathBuf,
    number: DeviceNumber,
    bytes: u64,
    can_fill: bool,
    base: PathBuf,
    store: PathBuf,
    /// There until the disk is given back.
    pieces: Option<Box<Pieces>>,
    kept: bool,
}

impl SnapshotDisk {
    pub(super) fn create(
        shared: &Arc<Shared>,
        id: SandboxId,
        base: &Path,
        store: &Path,
        shape: StoreShape,
    ) -> Result<Self, CreateDiskError> {
        store::create(store, shape).map_err(|source| CreateDiskError::Store {
            path: store.to_owned(),
            source,
        })?;
        Self::assemble(shared, id.clone(), base, store, shape.chunk).map_err(|source| {
            if let Err(error) = std::fs::remove_file(store) {
                tracing::warn!(sandbox_id = %id, %error, "the store of a failed disk stays");
            }
            CreateDiskError::Assemble { id, source }
        })
    }

    pub(super) fn restore(
        shared: &Arc<Shared>,
        id: SandboxId,
        base: &Path,
        store: &Path,
    ) -> Result<Self, RestoreDiskError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            |source| RestoreDiskError::Read { path, source }
        };
        let disk_bytes = std::fs::metadata(base).map_err(unreadable(base))?.len();
        let file = std::fs::File::open(store).map_err(unreadable(store))?;
        let contents = store::read(&file, disk_bytes).map_err(|error| match error {
            ReadStoreError::Io(source) => unreadable(store)(source),
            ReadStoreError::Damaged(damage) => RestoreDiskError::Damaged {
                path: store.to_owned(),
                damage,
            },
        })?;
        Self::assemble(shared, id.clone(), base, store, contents.chunk)
            .map_err(|source| RestoreDiskError::Assemble { id, source })
    }

    fn assemble(
        shared: &Arc<Shared>,
        id: SandboxId,
        base: &Path,
        store: &Path,
        chunk: store::ChunkSize,
    ) -> Result<Self, AssembleError> {
        let base = shared.loops().attach_base(base)?;
        if !base.bytes().is_multiple_of(SECTOR) || base.bytes() == 0 {
            return Err(AssembleError::Size {
                path: base.path().to_owned(),
                bytes: base.bytes(),
            });
        }
        let store = shared.loops().attach_store(store)?;
        let table = SnapshotTable {
            origin: base.number(),
            store: store.number(),
            chunk,
        };
        let (name, uuid) = (shared.name(&id), shared.uuid(&id));
        let number = shared
            .control()
            .create(&name, &uuid)
            .map_err(|error| match error {
                error if error.is_busy() => AssembleError::Taken(id.clone()),
                error => AssembleError::Device(error),
            })?;
        let pieces = Box::new(Pieces {
            id: id.clone(),
            number,
            table,
            base,
            store,
        });
        match furnish(shared, &pieces) {
            Ok(()) => Ok(Self::of(shared, pieces)),
            Err(error) => {
                if let Err((pieces, undo)) = pieces.tear_down(shared) {
                    tracing::warn!(sandbox_id = %id, error = &undo as &dyn std::error::Error,
                        "a half-made disk is removed later");
                    retire(Arc::clone(shared), pieces);
                }
                Err(error)
            }
        }
    }

    pub(super) fn adopt(
        shared: &Arc<Shared>,
        id: SandboxId,
        base: &Path,
        store: &Path,
    ) -> Result<Box<Pieces>, AdoptDiskError> {
        let uuid = shared.uuid(&id);
        let failed = |source| AdoptDiskError::Control {
            id: id.clone(),
            source,
        };
        let state = shared.control().find(Key::Uuid(&uuid)).map_err(failed)?;
        let Some(state) = state else {
            return Err(AdoptDiskError::Missing(id));
        };
        if !state.active || state.suspended {
            return Err(AdoptDiskError::Unfinished(id));
        }
        let line = shared.control().table(&uuid).map_err(failed)?;
        let table: SnapshotTable = line.text.parse().map_err(|source| AdoptDiskError::Table {
            id: id.clone(),
            source,
        })?;
        let foreign = |source| AdoptDiskError::Loop {
            id: id.clone(),
            source,
        };
        let base = shared
            .loops()
            .adopt_base(table.origin, base)
            .map_err(foreign)?;
        let store = shared
            .loops()
            .adopt_store(table.store, store)
            .map_err(foreign)?;
        let made = shared.nodes().make(id.as_str(), state.number);
        made.map_err(|source| AdoptDiskError::Node {
            path: shared.nodes().path_of(id.as_str()),
            source,
        })?;
        Ok(Box::new(Pieces {
            id,
            number: state.number,
            table,
            base,
            store,
        }))
    }

    pub(super) fn of(shared: &Arc<Shared>, pieces: Box<Pieces>) -> Self {
        let disk_bytes = pieces.base.bytes();
        Self {
            shared: Arc::clone(shared),
            id: pieces.id.clone(),
            node: shared.nodes().path_of(pieces.id.as_str()),
            number: pieces.number,
            bytes: disk_bytes,
            can_fill: store::can_fill(pieces.store.bytes(), disk_bytes, pieces.table.chunk),
            base: pieces.base.path().to_owned(),
            store: pieces.store.path().to_owned(),
            pieces: Some(pieces),
            kept: false,
        }
    }

    /// Sets whether the disk stays when this is dropped, which removes it otherwise.
    pub fn set_kept(&mut self, kept: bool) {
        self.kept = kept;
    }

    /// Whose disk it is.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The device node, there until the disk is given back. Only root can open it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.node
    }

    /// By which a jail makes a node of its own.
    #[must_use]
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// The size of the disk in bytes: that of its base image.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the store has less room than the disk has blocks, so that it can run full.
    #[must_use]
    pub fn can_fill(&self) -> bool {
        self.can_fill
    }

    /// The base image that it reads from.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The file that holds what was written.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The loop devices below it, that of the base image first.
    #[must_use]
    pub fn loops(&self) -> Option<(DeviceNumber, DeviceNumber)> {
        let table = self.pieces.as_ref()?.table;
        Some((table.origin, table.store))
    }

    /// What it takes on the host, and how full its store is.
    ///
    /// # Errors
    /// When the device or the store's file is gone.
    pub async fn usage(&self) -> Result<DiskUsage, DiskStatusError> {
        let (shared, id, store) = (
            Arc::clone(&self.shared),
            self.id.clone(),
            self.store.clone(),
        );
        blocking(move || {
            let metadata = std::fs::metadata(&store).map_err(|source| DiskStatusError::Store {
                path: store.clone(),
                source,
            })?;
            Ok(DiskUsage {
                allocated_bytes: metadata.blocks() * SECTOR,
                store: shared.status(&id)?,
            })
        })
        .await?
    }

    /// Waits until the store is filled to `limit_percent` or worse, looking every `interval`.
    /// The caller then pauses the sandbox, before a write finds no room.
    ///
    /// A store that [cannot fill](Self::can_fill) gives no alarm for its fill level.
    ///
    /// # Errors
    /// When the status cannot be had; also when the disk was given back meanwhile.
    pub fn watch(
        &self,
        limit_percent: u8,
        interval: Duration,
    ) -> impl Future<Output = Result<Alarm, DiskStatusError>> + Send + use<> {
        let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
        let limit = self.can_fill.then_some(limit_percent);
        watch::watch(shared, id, limit, interval)
    }

    /// Waits until all that was written is on the host's disk. To be called when the VM has
    /// ended, before a pause is acknowledged.
    ///
    /// # Errors
    /// When the device cannot be flushed.
    pub async fn sync(&self) -> Result<(), SyncDiskError> {
        let path = self.node.clone();
        blocking(move || {
            // The flush goes through the snapshot and the loop to the store's file.
            let flushed = std::fs::File::open(&path).and_then(|device| device.sync_all());
            flushed.map_err(|source| SyncDiskError::Flush { path, source })
        })
        .await?
    }

    /// Writes the disk as it is now to the new file `to`, with holes for what is zero. The
    /// file is there whole or not at all, and on the disk when this returns.
    ///
    /// Nobody may write to the disk meanwhile: the VM has ended or is paused, and what it
    /// wrote through the page cache is flushed here.
    ///
    /// # Errors
    /// When one of the files cannot be read or written; there is no new file then.
    ///
    /// # Cancel safety
    /// Once begun, it goes on without the future.
    pub async fn flatten(&self, to: &Path) -> Result<(), FlattenError> {
        let plan = flatten::Plan {
            device: self.node.clone(),
            base: self.base.clone(),
            store: self.store.clone(),
            bytes: self.bytes,
            to: to.to_owned(),
        };
        blocking(move || plan.run()).await?
    }

    /// Goes away without it: it stays as it is, and [`adopt`](super::DeviceMapper::adopt)
    /// takes it over. The device keeps its loops.
    pub fn leave(mut self) {
        drop(self.pieces.take());
    }

    /// Gives the disk back: the device first, then its loops. The store stays. Waits a few
    /// seconds for others to close the device, and says in the log who they are.
    ///
    /// # Errors
    /// When somebody keeps it open. A reaper then goes on, and at last leaves it to the
    /// kernel, which removes it when it is closed.
    ///
    /// # Cancel safety
    /// Once begun, the removal goes on without the future.
    pub async fn remove(mut self) -> Result<(), RemoveDiskError> {
        let Some(pieces) = self.pieces.take() else {
            return Ok(());
        };
        let shared = Arc::clone(&self.shared);
        let busy = shared.count_busy();
        blocking(move || {
            let _counted_until_done = busy;
            pieces.tear_down(&shared).map_err(|(pieces, error)| {
                retire(Arc::clone(&shared), pieces);
                error
            })
        })
        .await?
    }
}

impl Drop for SnapshotDisk {
    fn drop(&mut self) {
        if let Some(pieces) = self.pieces.take().filter(|_| !self.kept) {
            retire(Arc::clone(&self.shared), pieces);
        }
    }
}

/// Gives a new device its table and its node.
fn furnish(shared: &Shared, pieces: &Pieces) -> Result<(), AssembleError> {
    let uuid = shared.uuid(&pieces.id);
    let sectors = pieces.base.bytes() / SECTOR;
    let control = shared.control();
    control
        .load(&uuid, sectors, &pieces.table.to_string())
        .and_then(|()| control.resume(&uuid))
        .map_err(AssembleError::Device)?;
    let name = pieces.id.as_str();
    let made = shared.nodes().make(name, pieces.number);
    made.map(drop).map_err(|source| AssembleError::Node {
        path: shared.nodes().path_of(name),
        source,
    })
}
