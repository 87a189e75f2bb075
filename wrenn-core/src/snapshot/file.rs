//! What every step does with files, and how it fails.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::checksum;
use super::header::FileSeal;

/// The longest file that is read into memory as a whole. Headers are the longest: this is
/// one of 89 million extents.
const MAX_WHOLE_BYTES: u64 = 1 << 30;

/// A step that failed on a file or directory.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The disk is full.
    #[error("no space left to {step} {path}; free some, or move the root directory to a larger disk", path = path.display())]
    NoSpace {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {step} {path}", path = path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// Makes the error of one step on one path, of whatever the file system says.
    pub(super) fn of<E: Into<io::Error>>(
        step: &'static str,
        path: &Path,
    ) -> impl Fn(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| {
            let source = source.into();
            let path = path.clone();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Self::NoSpace { step, path }
                }
                _ => Self::Io { step, path, source },
            }
        }
    }

    /// Whether the file is not there.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Files that were written and may not be on the disk yet.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Vec<(PathBuf, File)>);

impl Unsynced {
    pub(super) fn add(&mut self, path: &Path, file: File) {
        self.0.push((path.to_owned(), file));
    }

    /// Waits until all are on the disk. They are brought there at the same time, so that the
    /// file system writes its journal, and the disk its cache, once for most of them.
    pub(super) fn sync(self) -> Result<(), FileError> {
        std::thread::scope(|scope| {
            let begun = self.0.iter().map(|(path, file)| {
                let sync = scope.spawn(|| file.sync_all());
                (path, sync)
            });
            // All have begun before the first is waited for.
            let begun: Vec<_> = begun.collect();
            begun.into_iter().try_for_each(|(path, sync)| {
                let lost = |_| Err(io::Error::other("the thread that syncs it died"));
                let synced = sync.join().unwrap_or_else(lost);
                synced.map_err(FileError::of("sync", path))
            })
        })
    }
}

/// Opens a file that must be one: no link, no pipe, no device.
pub(super) fn open_regular(path: &Path) -> Result<File, FileError> {
    open(path, false).map(|(file, _)| file)
}

/// Opens a file that a VMM put there, to be written to: one that has no second name, by
/// which it could be a file from elsewhere.
pub(super) fn open_foreign(path: &Path) -> Result<File, FileError> {
    match open(path, true)? {
        (file, 1) => Ok(file),
        _ => Err(FileError::of("open", path)(io::Error::other(
            "it has a second name",
        ))),
    }
}

/// Opens an ordinary file, and says how many names it has.
fn open(path: &Path, write: bool) -> Result<(File, u64), FileError> {
    let failed = FileError::of::<io::Error>("open", path);
    let file = File::options()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(&failed)?;
    let meta = file.metadata().map_err(&failed)?;
    if meta.is_file() {
        Ok((file, meta.nlink()))
    } else {
        Err(failed(io::Error::other("it is no ordinary file")))
    }
}

/// Writes a new file.
pub(super) fn write_new(
    path: &Path,
    bytes: &[u8],
    unsynced: &mut Unsynced,
) -> Result<FileSeal, FileError> {
    let failed = FileError::of::<io::Error>("write", path);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(&failed)?;
    file.write_all(bytes).map_err(&failed)?;
    unsynced.add(path, file);
    Ok(FileSeal {
        length: bytes.len() as u64,
        checksum: checksum::of(bytes),
    })
}

/// Reads a file of a sane length.
pub(super) fn read_whole(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = FileError::of::<io::Error>("read", path);
    let file = open_regular(path)?;
    let length = file.metadata().map_err(&failed)?.len();
    if length > MAX_WHOLE_BYTES {
        return Err(failed(io::Error::other(format!("it has {length} bytes"))));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(MAX_WHOLE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(&failed)?;
    Ok(bytes)
}

/// Waits until what a directory lists is on the disk.
pub(super) fn sync_directory(path: &Path) -> Result<(), FileError> {
    let failed = FileError::of::<io::Error>("sync", path);
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(failed)
}

/// Names in a directory; none where it is not there.
pub(super) fn names_in(directory: &Path) -> Result<Vec<String>, FileError> {
    let failed = FileError::of::<io::Error>("list", directory);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // A name that is no text is none of ours.
        names.extend(entry.map_err(&failed)?.file_name().into_string());
    }
    Ok(names)
}

/// Removes a directory with all that is in it, which others may be removing too.
pub(super) fn remove_tree(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::of("remove", path)(error))
        }
        _ => Ok(()),
    }
}
