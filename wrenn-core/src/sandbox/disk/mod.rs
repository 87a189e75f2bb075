//! The root disk of a sandbox.
//!
//! | host | disk | file in the sandbox's directory |
//! |---|---|---|
//! | has a device mapper | what was written, over the template's image | `disk.store` |
//! | has none | a private copy of the image | `disk.ext4` |
//!
//! Both are block for block the same to the guest.

mod copy;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::directory::SandboxDirectory;
use crate::devicemapper::{
    AdoptDiskError, CreateDiskError, DeviceMapper, RemoveDiskError, RestoreDiskError, SnapshotDisk,
    StoreShape, SyncDiskError,
};

pub use copy::CopyDiskError;

const STORE: &str = "disk.store";
const COPY: &str = "disk.ext4";

/// A sandbox's disk, there for a VMM to open.
#[must_use = "dropping a disk gives it back in the background"]
#[derive(Debug)]
pub(super) enum RootDisk {
    /// What was written lies over the image.
    Snapshot(Box<SnapshotDisk>),
    /// All of it is here.
    Copy(PathBuf),
}

/// What a disk is made of, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DiskRecord {
    /// Over the image at this path.
    Snapshot {
        /// The image.
        base: PathBuf,
    },
    /// A copy.
    Copy,
}

/// Why a sandbox's disk was not made.
#[derive(Debug, thiserror::Error)]
pub enum MakeDiskError {
    /// The copy.
    #[error(transparent)]
    Copy(#[from] CopyDiskError),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] CreateDiskError),
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

/// Why a sandbox's disk was not made again from a copy of it.
#[derive(Debug, thiserror::Error)]
pub enum RestoreRootDiskError {
    /// What an earlier resume left of it cannot be removed.
    #[error("cannot remove {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The copy.
    #[error(transparent)]
    Copy(#[from] CopyDiskError),
    /// The device.
    #[error(transparent)]
    Device(#[from] RestoreDiskError),
    /// It was made where there is a device mapper.
    #[error("it lies over its template's image, and this host has no device mapper")]
    NoDeviceMapper,
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

/// Why it is not certain that what was written to a sandbox's disk is kept.
#[derive(Debug, thiserror::Error)]
pub enum FlushDiskError {
    /// The copy.
    #[error("cannot sync {path}")]
    Copy {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device.
    #[error(transparent)]
    Device(#[from] SyncDiskError),
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

/// Why a sandbox's disk was not taken over.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeOverDiskError {
    #[error("the copy of its image is gone")]
    NoCopy,
    #[error("this host has no device mapper any more")]
    NoDeviceMapper,
    #[error(transparent)]
    Adopt(#[from] AdoptDiskError),
}

impl TakeOverDiskError {
    /// Whether the disk is gone for certain.
    pub(super) const fn is_gone(&self) -> bool {
        match self {
            Self::NoCopy => true,
            Self::NoDeviceMapper => false,
            Self::Adopt(error) => error.is_gone(),
        }
    }
}

impl DiskRecord {
    /// Name of the file that holds what was written, in the sandbox's directory and in
    /// builds.
    pub(super) const fn file_name(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => STORE,
            Self::Copy => COPY,
        }
    }
}

fn remove_file(directory: &SandboxDirectory, name: &str) -> Result<(), RestoreRootDiskError> {
    let path = directory.file(name);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RestoreRootDiskError::Remove { path, source })
        }
        _ => Ok(()),
    }
}

impl RootDisk {
    /// Makes the disk of a new sandbox from an image that never changes.
    ///
    /// # Cancel safety
    /// Dropping the future gives back what was made, but for files in the directory.
    pub(super) async fn make(
        mapper: Option<&DeviceMapper>,
        directory: &SandboxDirectory,
        image: &Path,
        image_bytes: u64,
    ) -> Result<Self, MakeDiskError> {
        if let Some(mapper) = mapper {
            let shape = StoreShape::for_disk(image_bytes);
            let store = directory.file(STORE);
            let disk = mapper.create(directory.id(), image, &store, shape).await?;
            return Ok(Self::Snapshot(Box::new(disk)));
        }
        let (from, to) = (image.to_owned(), directory.file(COPY));
        let made = to.clone();
        tokio::task::spawn_blocking(move || copy::copy(&from, &made))
            .await
            .map_err(|_| MakeDiskError::Thread)??;
        Ok(Self::Copy(to))
    }

    /// Makes the disk of a sandbox again, as it is in the file `saved`, which is only read.
    ///
    /// # Cancel safety
    /// Dropping the future gives back what was made, but for files in the directory.
    pub(super) async fn restore(
        mapper: Option<&DeviceMapper>,
        directory: &SandboxDirectory,
        record: &DiskRecord,
        saved: &Path,
    ) -> Result<Self, RestoreRootDiskError> {
        remove_file(directory, record.file_name())?;
        let (from, to) = (saved.to_owned(), directory.file(record.file_name()));
        let path = to.clone();
        tokio::task::spawn_blocking(move || copy::copy(&from, &to))
            .await
            .map_err(|_| RestoreRootDiskError::Thread)??;
        match record {
            DiskRecord::Copy => Ok(Self::Copy(path)),
            DiskRecord::Snapshot { base } => {
                let mapper = mapper.ok_or(RestoreRootDiskError::NoDeviceMapper)?;
                let disk = mapper.restore(directory.id(), base, &path).await?;
                Ok(Self::Snapshot(Box::new(disk)))
            }
        }
    }

    /// Waits until all that the guest has written is in the file in the sandbox's
    /// directory. Its VM is paused.
    pub(super) async fn flush(&self) -> Result<(), FlushDiskError> {
        match self {
            Self::Snapshot(disk) => Ok(disk.sync().await?),
            Self::Copy(path) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || {
                    let synced = File::open(&path).and_then(|file| file.sync_all());
                    synced.map_err(|source| FlushDiskError::Copy { path, source })
                })
                .await
                .map_err(|_| FlushDiskError::Thread)?
            }
        }
    }

    /// Removes the files that a disk which was given back left in the directory.
    pub(super) fn remove_files(directory: &SandboxDirectory) -> Result<(), RestoreRootDiskError> {
        remove_file(directory, STORE)?;
        remove_file(directory, COPY)
    }

    /// Takes over the disk of a sandbox that outlived its owner.
    pub(super) async fn take_over(
        mapper: Option<&DeviceMapper>,
        directory: &SandboxDirectory,
        record: &DiskRecord,
    ) -> Result<Self, TakeOverDiskError> {
        match record {
            DiskRecord::Copy => {
                let path = directory.file(COPY);
                if path.exists() {
                    Ok(Self::Copy(path))
                } else {
                    Err(TakeOverDiskError::NoCopy)
                }
            }
            DiskRecord::Snapshot { base } => {
                let mapper = mapper.ok_or(TakeOverDiskError::NoDeviceMapper)?;
                let store = directory.file(STORE);
                let disk = mapper.adopt(directory.id(), base, &store).await?;
                Ok(Self::Snapshot(Box::new(disk)))
            }
        }
    }

    /// The file or block device that a VMM opens.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Snapshot(disk) => disk.path(),
            Self::Copy(path) => path,
        }
    }

    /// How it is written down.
    pub(super) fn record(&self) -> DiskRecord {
        match self {
            Self::Snapshot(disk) => DiskRecord::Snapshot {
                base: disk.base().to_owned(),
            },
            Self::Copy(_) => DiskRecord::Copy,
        }
    }

    /// Sets whether it stays when this is dropped.
    pub(super) fn set_kept(&mut self, kept: bool) {
        match self {
            Self::Snapshot(disk) => disk.set_kept(kept),
            Self::Copy(_) => {}
        }
    }

    /// Goes away without it.
    pub(super) fn leave(self) {
        match self {
            Self::Snapshot(disk) => disk.leave(),
            Self::Copy(_) => {}
        }
    }

    /// Gives back what it took of the host. The files in the sandbox's directory stay.
    pub(super) async fn remove(self) -> Result<(), RemoveDiskError> {
        match self {
            Self::Snapshot(disk) => disk.remove().await,
            Self::Copy(_) => Ok(()),
        }
    }
}
