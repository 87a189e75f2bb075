//! Where a template grows before it is put in its place.
//!
//! ```text
//! <root>/imports/<random>/   one import; flock()ed by its process
//!     image/                 the archive of a container image, unpacked
//!     tree/                  the root file system
//!     rootfs.ext4            what is made of it
//!     template/              a new template, to be renamed as a whole
//! ```
//!
//! A directory that nobody has locked was left by a process that died, and goes with the
//! next import.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::cache::remove_tree;
use crate::error::{AtPath as _, BuildError};
use crate::install::lock_root;

/// The directory of one import. It goes with this value.
#[derive(Debug)]
pub(super) struct Staging {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Staging {
    /// Makes one in the root directory `root`, after removing what dead imports left.
    pub(super) fn begin(root: &Path) -> Result<Self, BuildError> {
        let parent = root.join("imports");
        fs::create_dir_all(&parent).at("create", &parent)?;
        // Held so that nobody takes a directory that is not locked yet for a dead one's.
        let _lock = lock_root(root)?;
        sweep(&parent)?;
        let directory = nix::unistd::mkdtemp(&parent.join("XXXXXX"))
            .map_err(Into::into)
            .at("create a directory in", &parent)?;
        let lock = lock(&directory)?.ok_or_else(|| {
            BuildError::file("lock", &directory, nix::errno::Errno::EWOULDBLOCK.into())
        })?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// The path of `name` in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes the directory `name` in it, closed to other users: files in it keep the mode,
    /// and a program with the set-user-ID bit must not be there for everyone to run.
    pub(super) fn make_directory(&self, name: &str) -> Result<PathBuf, BuildError> {
        let path = self.path(name);
        DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .at("create", &path)?;
        Ok(path)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now goes with the next import.
        remove_tree(&self.directory).ok();
    }
}

fn sweep(parent: &Path) -> Result<(), BuildError> {
    for entry in fs::read_dir(parent).at("list", parent)? {
        let path = entry.at("list", parent)?.path();
        if let Some(_lock) = lock(&path)? {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Locks the directory `path`, unless somebody has, or it went meanwhile.
fn lock(path: &Path) -> Result<Option<Flock<File>>, BuildError> {
    let directory = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.at("open", path)?,
    };
    Ok(Flock::lock(directory, FlockArg::LockExclusiveNonblock).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_import_left_is_swept_and_the_living_is_spared() {
        let root = tempfile::tempdir().unwrap();
        let living = Staging::begin(root.path()).unwrap();
        let dead = root.path().join("imports/dead/tree");
        fs::create_dir_all(&dead).unwrap();
        fs::write(dead.join("file"), "x").unwrap();
        let next = Staging::begin(root.path()).unwrap();
        assert!(!dead.exists());
        assert!(living.directory.is_dir() && next.directory.is_dir());
        drop(next);
        drop(living);
        assert_eq!(
            fs::read_dir(root.path().join("imports")).unwrap().count(),
            0
        );
    }
}
