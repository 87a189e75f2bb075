//! A private copy of an image, which costs nothing where the file system shares blocks, and
//! only the blocks in use where it doesn't.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;
use tracing::debug;

/// Why a disk could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyDiskError {
    /// The template's disk cannot be read.
    #[error("cannot read {path}")]
    Source {
        /// The template's disk.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no room for the copy.
    #[error("no space left for {path}; free some, or move the root directory to a larger disk")]
    NoSpace {
        /// The copy.
        path: PathBuf,
    },
    /// The copy cannot be written.
    #[error("cannot write {path}")]
    Copy {
        /// The copy.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Copies the disk `from` to the new file `to`. Blocks the thread.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), CopyDiskError> {
    let unreadable = |source| CopyDiskError::Source {
        path: from.to_owned(),
        source,
    };
    let unwritable = |source: io::Error| {
        if source.kind() == io::ErrorKind::StorageFull {
            CopyDiskError::NoSpace {
                path: to.to_owned(),
            }
        } else {
            CopyDiskError::Copy {
                path: to.to_owned(),
                source,
            }
        }
    };
    let source = File::open(from).map_err(unreadable)?;
    let length = source.metadata().map_err(unreadable)?.len();
    let target = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(unwritable)?;
    match ioctl_ficlone(&target, &source) {
        Ok(()) => return Ok(()),
        Err(errno) => debug!(%errno, "blocks cannot be shared; the disk is copied"),
    }
    target.set_len(length).map_err(unwritable)?;
    copy_data(&source, &target, length).map_err(|errno| unwritable(errno.into()))
}

/// Copies what holds data and leaves holes as they are.
fn copy_data(source: impl AsFd, target: impl AsFd, length: u64) -> Result<(), Errno> {
    let mut offset = 0;
    while offset < length {
        let start = match seek(&source, SeekFrom::Data(offset)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let end = seek(&source, SeekFrom::Hole(start))?;
        let (mut from, mut to) = (start, start);
        while from < end {
            let wanted = usize::try_from(end - from).unwrap_or(usize::MAX);
            let copied = copy_file_range(&source, Some(&mut from), &target, Some(&mut to), wanted)?;
            if copied == 0 {
                // The file was cut short while it was read.
                return Err(Errno::IO);
            }
        }
        offset = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"middle", 32 << 20).unwrap();

        copy(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(&from).unwrap());
        let allocated = std::fs::metadata(&to).unwrap().blocks() * 512;
        assert!(allocated < 1 << 20, "{allocated} bytes are allocated");
    }

    #[test]
    fn an_existing_copy_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "old").unwrap();
        assert!(matches!(copy(&from, &to), Err(CopyDiskError::Copy { .. })));
        assert_eq!(std::fs::read(&to).unwrap(), b"old");
    }
}
