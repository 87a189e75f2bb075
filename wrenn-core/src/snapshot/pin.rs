//! The lock on a build's directory: shared by whoever writes or uses the build, exclusive
//! for who removes it.
//!
//! The kernel gives it back when its holder ends, however it ends. So a lock that can be
//! had says that no living process uses the build, and a directory that is half written
//! and not locked has no writer any more.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::file::FileError;

/// Holds the lock for as long as it lives.
#[derive(Debug)]
pub(super) struct Pin(File);

impl Pin {
    /// Waits for a share of the lock, which is kept from others for moments only. `None`
    /// where there is no such directory, any more or at all.
    pub(super) fn share(path: &Path) -> Result<Option<Self>, FileError> {
        Self::take(path, FlockOperation::LockShared)
    }

    /// Takes the lock alone, or gives `None` where somebody has it, or nothing is there.
    pub(super) fn exclusive(path: &Path) -> Result<Option<Self>, FileError> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Option<Self>, FileError> {
        let directory = match File::open(path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::of("open", path)(error)),
        };
        match flock(&directory, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(FileError::of("lock", path)(errno)),
        }
        let pin = Self(directory);
        // It may have been moved away while we waited.
        Ok(pin.is_at(path)?.then_some(pin))
    }

    fn is_at(&self, path: &Path) -> Result<bool, FileError> {
        let failed = FileError::of::<io::Error>("look at", path);
        let held = self.0.metadata().map_err(&failed)?;
        match std::fs::metadata(path) {
            Ok(named) => Ok(named.ino() == held.ino() && named.dev() == held.dev()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }
}
