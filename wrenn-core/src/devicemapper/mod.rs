//! Root disks of sandboxes: a base image that all share, and a store of what each wrote.
//!
//! ```text
//!   the VMM ──▶ /dev/wrenn/<root identity>/<sandbox id>    node, made and removed here
//!                     │
//!              dm "wrenn-<sandbox id>"                     snapshot target, UUID
//!              │               │                           WRENN-<root identity>-<sandbox id>
//!   reads what was never       reads and writes
//!   written    │               │  what was
//!        loop, read-only     loop, direct I/O              both autoclear
//!              │               │
//!         base image        store: sparse file             header, tables, chunks
//!         (of a template,   (of one sandbox)
//!          shared)
//! ```
//!
//! All of it is made by ioctl: no `dmsetup`, no `losetup`, no udev.
//!
//! | making | giving back |
//! |---|---|
//! | loop of the base image, unless there is one | dm device, when nobody has it open |
//! | store file, its loop | node |
//! | dm device: create, load table, resume | loop of the store |
//! | node | loop of the base image, with its last user |
//!
//! The VM must have ended before its disk is given back. What a killed process leaves is a
//! dm device, which keeps its loops: [`adopt`](DeviceMapper::adopt) takes it over, or
//! [`sweep`](DeviceMapper::sweep) removes it and the loops go with it. The root directory's
//! identity (of its inode) is in each UUID, so that two root directories on one host leave
//! each other alone.
//!
//! A store is *persistent with overflow*: it outlives its device and the host's crash, and
//! when it is full it refuses writes but can still be read. [`SnapshotDisk::watch`] tells
//! before that happens. What it cannot see is that the host's file system runs full below a
//! sparse store: then the kernel calls the store invalid. Whoever places sandboxes keeps
//! room for what they may write.

mod control;
mod disk;
mod flatten;
mod holders;
mod loops;
mod node;
mod pieces;
mod shared;
mod store;
mod sweep;
mod sys;
mod table;
mod watch;

pub use control::ControlError;
pub use disk::{
    AdoptDiskError, AssembleError, CreateDiskError, DiskStatusError, DiskUsage, RestoreDiskError,
    SnapshotDisk, SyncDiskError,
};
pub use flatten::FlattenError;
pub use holders::{Holder, Holders};
pub use loops::LoopError;
pub use pieces::RemoveDiskError;
pub use shared::ThreadLost;
pub use store::{ChunkSize, StoreDamage, StoreShape};
pub use sweep::{Leftovers, SweepError};
pub use table::{DeviceNumber, StoreStatus, UnknownLine};
pub use watch::{Alarm, DEFAULT_FILL_LIMIT_PERCENT};

pub(crate) use sweep::leftovers_of;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use control::{CONTROL, Control};
use loops::LOOP_CONTROL;
use shared::{RootIdentity, Shared, blocking};

use crate::{RootDirectory, SandboxId};

/// Why this host cannot make disks; the message says what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum OpenDeviceMapperError {
    #[error("cannot open {CONTROL}; as root, load the device mapper: modprobe dm_mod")]
    Control(#[source] io::Error),
    #[error("the kernel's device mapper has no snapshots; load them: modprobe dm_snapshot")]
    NoSnapshots,
    #[error("cannot ask the device mapper for snapshots; it needs Linux 5.8 or later")]
    Probe(#[from] ControlError),
    #[error("cannot open {LOOP_CONTROL}; as root, load loop devices: modprobe loop")]
    Loops(#[source] io::Error),
    #[error("cannot use root directory {path}")]
    Root {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the device mapper")]
    Thread(#[from] ThreadLost),
}

/// Makes disks of one root directory. Cheap to clone; clones share the loop devices of
/// base images.
#[derive(Clone, Debug)]
pub struct DeviceMapper {
    root: RootDirectory,
    shared: Arc<Shared>,
}

impl DeviceMapper {
    /// Looks whether the kernel can do what is needed. Changes nothing, but that asking for
    /// snapshots may load their module.
    ///
    /// # Errors
    /// When something is missing; the message says how to get it.
    pub async fn open(root: &RootDirectory) -> Result<Self, OpenDeviceMapperError> {
        let root = root.clone();
        blocking(move || {
            let control = Control::open().map_err(OpenDeviceMapperError::Control)?;
            if !control.has_snapshots()? {
                return Err(OpenDeviceMapperError::NoSnapshots);
            }
            let loops = File::options()
                .read(true)
                .write(true)
                .open(LOOP_CONTROL)
                .map_err(OpenDeviceMapperError::Loops)?;
            let identity = std::fs::create_dir_all(root.path())
                .and_then(|()| RootIdentity::of(root.path()))
                .map_err(|source| OpenDeviceMapperError::Root {
                    path: root.path().to_owned(),
                    source,
                })?;
            let shared = Arc::new(Shared::new(identity, control, loops));
            Ok(Self { root, shared })
        })
        .await?
    }

    /// Makes the disk of a new sandbox, and its store.
    ///
    /// The base image must never change again: what was not written is read from it.
    ///
    /// # Errors
    /// When the store exists, or the kernel refuses a step; nothing is left behind.
    ///
    /// # Cancel safety
    /// A disk whose future was dropped is given back as soon as it is made; its store stays.
    pub async fn create(
        &self,
        id: &SandboxId,
        base: &Path,
        store: &Path,
        shape: StoreShape,
    ) -> Result<SnapshotDisk, CreateDiskError> {
        let (id, base, store) = (id.clone(), base.to_owned(), store.to_owned());
        self.make(move |shared| SnapshotDisk::create(shared, id, &base, &store, shape))
            .await?
    }

    /// Makes the disk of a sandbox again from its store, also after a crash of the host. All
    /// of the store's tables are checked first.
    ///
    /// # Errors
    /// When the store is damaged or was invalid, or the kernel refuses a step. The store is
    /// as it was.
    ///
    /// # Cancel safety
    /// As for [`create`](Self::create).
    pub async fn restore(
        &self,
        id: &SandboxId,
        base: &Path,
        store: &Path,
    ) -> Result<SnapshotDisk, RestoreDiskError> {
        let (id, base, store) = (id.clone(), base.to_owned(), store.to_owned());
        self.make(move |shared| SnapshotDisk::restore(shared, id, &base, &store))
            .await?
    }

    /// Takes over the disk of an owner that died, while its VM may go on running. The
    /// device must be made of these two files.
    ///
    /// # Errors
    /// When there is no such disk, or it is made of other files. It stays as it is.
    ///
    /// # Cancel safety
    /// The disk stays as it is if the future is dropped.
    pub async fn adopt(
        &self,
        id: &SandboxId,
        base: &Path,
        store: &Path,
    ) -> Result<SnapshotDisk, AdoptDiskError> {
        let (id, base, store) = (id.clone(), base.to_owned(), store.to_owned());
        // Bare pieces come from the thread: unlike a disk they are not removed when their
        // caller is gone.
        let adopted = self.make(move |shared| SnapshotDisk::adopt(shared, id, &base, &store));
        Ok(SnapshotDisk::of(&self.shared, adopted.await??))
    }

    /// Lists everything that belongs to the disks of this root directory.
    ///
    /// # Errors
    /// When the host cannot be searched.
    pub async fn leftovers(&self) -> Result<Leftovers, SweepError> {
        let root = self.root.clone();
        blocking(move || leftovers_of(&root)).await?
    }

    /// Removes the disks of sandboxes that are not `in_use`, and returns whose they were.
    /// Stores stay. A disk that is being made must count as in use already.
    ///
    /// # Errors
    /// When the host cannot be searched. A disk that can't be removed is logged.
    pub async fn sweep(
        &self,
        in_use: impl Fn(&SandboxId) -> bool + Send + 'static,
    ) -> Result<Vec<SandboxId>, SweepError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || sweep::sweep(&shared, in_use)).await?
    }

    /// Waits until what was dropped is given back. To be called before the process ends.
    pub async fn settled(&self) {
        self.shared.settled().await;
    }

    async fn make<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> T + Send + 'static,
    ) -> Result<T, ThreadLost> {
        let shared = Arc::clone(&self.shared);
        let busy = shared.count_busy();
        // If nobody waits any more when the disk is ready, it is dropped on that thread,
        // which gives it back. The count goes behind it, so that it never seems settled.
        let (disk, _busy) = blocking(move || (work(&shared), busy)).await?;
        Ok(disk)
    }
}
