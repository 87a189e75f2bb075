//! The directory of one sandbox, and the lock that says whether its owner lives.
//!
//! ```text
//! <root>/sandboxes/<id>.lock    flock()ed by the owning process, made first, removed last
//! <root>/sandboxes/<id>/        image-*, build-*, sandbox.json, disk, console.log, vmm.log,
//!                               pager.log
//! <root>/sandboxes/<id>/pager/  pager.sock; the only place where the pager makes files
//! <root>/sandboxes/<id>/shared/ vmm.sock; the only place where the VMM makes files
//! ```
//!
//! The kernel releases the lock when its owner dies, however it dies. So whoever can take
//! the lock of an existing directory knows that nobody owns it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use tracing::warn;

use super::references;
use crate::snapshot::BuildId;
use crate::{RootDirectory, SandboxId};

/// Why a sandbox's directory cannot be made, locked or removed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The file system refused.
    #[error("cannot {step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("sandbox {0} exists already and belongs to a running process")]
    Taken(SandboxId),
}

/// The directory of one sandbox. Dropping it removes it, unless it is to be kept.
#[derive(Debug)]
pub(super) struct SandboxDirectory {
    id: SandboxId,
    path: PathBuf,
    /// Whether dropping it leaves the files.
    kept: bool,
    /// There until the directory is removed.
    lock: Option<OwnerLock>,
}

/// The lock of a sandbox's owner.
#[derive(Debug)]
struct OwnerLock {
    path: PathBuf,
    /// Holds the lock for as long as it is open.
    _file: File,
}

impl SandboxDirectory {
    /// Makes the directory of a new sandbox.
    pub(super) fn create(root: &RootDirectory, id: SandboxId) -> Result<Self, DirectoryError> {
        let parent = root.sandboxes();
        std::fs::create_dir_all(&parent).map_err(io_error("make", &parent))?;
        let Some(lock) = OwnerLock::acquire(root, &id)? else {
            return Err(DirectoryError::Taken(id));
        };
        let path = root.sandbox(&id);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(io_error("make", &path))?;
        Ok(Self {
            id,
            path,
            kept: false,
            lock: Some(lock),
        })
    }

    /// Takes over the directory of a sandbox whose owner died; `None` where it lives. It is kept:
    /// only [`remove`](Self::remove) removes it.
    pub(super) fn take_over(
        root: &RootDirectory,
        id: SandboxId,
    ) -> Result<Option<Self>, DirectoryError> {
        let path = root.sandbox(&id);
        let lock = OwnerLock::acquire(root, &id)?;
        Ok(lock.map(|lock| Self {
            id,
            path,
            kept: true,
            lock: Some(lock),
        }))
    }

    pub(super) fn id(&self) -> &SandboxId {
        &self.id
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// When the directory was made, as far as the file system knows, in RFC 3339.
    pub(super) fn created_at(&self) -> String {
        let made = std::fs::metadata(&self.path)
            .and_then(|metadata| metadata.created().or_else(|_| metadata.modified()));
        humantime::format_rfc3339_millis(made.unwrap_or(SystemTime::UNIX_EPOCH)).to_string()
    }

    /// The path of one of its files.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Refers to the image that its root disk is made of, before that is opened: whoever deletes
    /// templates looks for references.
    pub(super) fn refer_to_image(&self, sha256: &str) -> Result<(), DirectoryError> {
        let added = references::add_image(&self.path, sha256);
        added.map_err(io_error("add a reference to", &self.path))
    }

    /// Refers to a build, before that is opened.
    pub(super) fn refer_to_build(&self, build: &BuildId) -> Result<(), DirectoryError> {
        let added = references::add_build(&self.path, build);
        added.map_err(io_error("add a reference to", &self.path))
    }

    /// From now on dropping it removes nothing: somebody's data is in it.
    pub(super) fn keep(&mut self) {
        self.set_kept(true);
    }

    /// Sets whether dropping it leaves the files.
    pub(super) fn set_kept(&mut self, kept: bool) {
        self.kept = kept;
    }

    /// Lets go of it without removing anything.
    pub(super) fn leave(mut self) {
        // Closing the file gives the lock back.
        drop(self.lock.take());
    }

    /// Removes it with all that is in it.
    pub(super) async fn remove(mut self) -> Result<(), DirectoryError> {
        let Some(lock) = self.lock.take() else {
            return Ok(());
        };
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || remove(&path, lock))
            .await
            .unwrap_or_else(|error| Err(io_error("remove", &self.path)(io::Error::other(error))))
    }

    /// Removes it from a thread that may wait.
    pub(super) fn remove_now(mut self) -> Result<(), DirectoryError> {
        self.lock
            .take()
            .map_or(Ok(()), |lock| remove(&self.path, lock))
    }
}

impl Drop for SandboxDirectory {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        if self.kept {
            return;
        }
        // The files of one sandbox are few: this takes milliseconds, and happens only
        // where nobody asked for an orderly end.
        if let Err(error) = remove(&self.path, lock) {
            warn!(sandbox_id = %self.id, %error, "the next sweep removes a sandbox's files");
        }
    }
}

impl OwnerLock {
    /// Takes the lock, or says that somebody has it.
    fn acquire(root: &RootDirectory, id: &SandboxId) -> Result<Option<Self>, DirectoryError> {
        let path = root.sandboxes().join(format!("{id}.lock"));
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(io_error("open", &path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(io_error("lock", &path)(errno.into())),
            }
            // A sweep may have removed the file between the two calls: then the lock is
            // on a file that nobody else can find, and the next round makes a new one.
            let held = file.metadata().map_err(io_error("look at", &path))?;
            if std::fs::metadata(&path).is_ok_and(|named| named.ino() == held.ino()) {
                return Ok(Some(Self { path, _file: file }));
            }
        }
    }
}

fn remove(directory: &Path, lock: OwnerLock) -> Result<(), DirectoryError> {
    match std::fs::remove_dir_all(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("remove", directory)(error)),
    }
    // The lock goes last: as long as it exists, so may the directory.
    std::fs::remove_file(&lock.path).map_err(io_error("remove", &lock.path))
}

fn io_error<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> DirectoryError + 'a {
    move |source| DirectoryError::Io {
        step,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_living_owner_keeps_it_and_a_dead_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::new(directory.path());
        let id = SandboxId::random();
        let owned = SandboxDirectory::create(&root, id.clone()).unwrap();
        std::fs::write(owned.file("rootfs.ext4"), "data").unwrap();

        assert!(
            SandboxDirectory::take_over(&root, id.clone())
                .unwrap()
                .is_none()
        );
        assert!(matches!(
            SandboxDirectory::create(&root, id.clone()),
            Err(DirectoryError::Taken(_))
        ));

        // What a killed process leaves: the files, and a lock that nobody holds.
        let mut owned = owned;
        drop(owned.lock.take());
        let found = SandboxDirectory::take_over(&root, id.clone())
            .unwrap()
            .unwrap();
        assert_eq!(std::fs::read(found.file("rootfs.ext4")).unwrap(), b"data");

        // One that is kept survives being dropped.
        let mut found = found;
        found.keep();
        drop(found);
        let found = SandboxDirectory::take_over(&root, id.clone())
            .unwrap()
            .unwrap();
        assert!(found.file("rootfs.ext4").exists());
        found.remove().await.unwrap();
        assert_eq!(std::fs::read_dir(root.sandboxes()).unwrap().count(), 0);
    }
}
