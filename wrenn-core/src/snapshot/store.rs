//! The directory of builds.
//!
//! ```text
//! <root>/snapshots/builds/<id>/                  a build: whole, and never changed
//! <root>/snapshots/builds/<id>.tmp-<random>/     being written or being removed
//! ```

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::codec::{self, FIXED_LENGTH};
use super::file::{self, FileError};
use super::header::{DecodeHeaderError, Head};
use super::id::BuildId;
use super::pin::Pin;
use super::sparse;
use crate::RootDirectory;

pub(super) const HEADER: &str = "header.bin";
pub(super) const MANIFEST: &str = "build.json";
pub(super) const MEMORY: &str = "memory.bin";
pub(super) const SUMS: &str = "memory.sums";
pub(super) const VMSTATE: &str = "vmstate.bin";
/// Marks a directory that is no build.
const ASIDE: &str = ".tmp-";

/// Why the builds of a root directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// The directory cannot be made or read.
    #[error("the directory of snapshots cannot be used")]
    File(#[from] FileError),
    /// The file system gets diffs wrong.
    #[error(
        "the file system of {} does not tell which pages of a file were written; \
         move the root directory to ext4 or XFS", .0.display()
    )]
    NoHoles(PathBuf),
}

/// Why the head of a header cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadHeadError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is damaged.
    #[error("{} is damaged", path.display())]
    Decode {
        /// The header.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: DecodeHeaderError,
    },
}

/// The builds of one root directory. Many processes may use the same one.
///
/// Every call blocks its thread on the disk.
#[derive(Clone, Debug)]
pub struct BuildStore {
    builds: PathBuf,
}

impl BuildStore {
    /// Opens the builds of a root directory; makes the directory where it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made, or its file system cannot be relied on to tell
    /// which pages of a sparse file were written.
    pub fn open(root: &RootDirectory) -> Result<Self, OpenStoreError> {
        let builds = root.builds();
        if !builds.is_dir() {
            // Memory of guests lies here: nobody else looks in.
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&builds)
                .map_err(FileError::of("make", &builds))?;
            for path in builds.ancestors().skip(1).take(2) {
                file::sync_directory(path)?;
            }
        }
        let tells = sparse::tells_written_pages(&builds);
        if tells.map_err(FileError::of("make a file in", &builds))? {
            Ok(Self { builds })
        } else {
            Err(OpenStoreError::NoHoles(builds))
        }
    }

    /// Where the builds lie.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.builds
    }

    /// The directory of one build.
    #[must_use]
    pub fn directory(&self, id: &BuildId) -> PathBuf {
        self.builds.join(id.as_str())
    }

    /// All builds, sorted by id.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn list(&self) -> Result<Vec<BuildId>, FileError> {
        let names = file::names_in(&self.builds)?;
        let mut ids: Vec<BuildId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort();
        Ok(ids)
    }

    /// Removes what killed processes left half written or half removed. Returns the paths.
    ///
    /// # Errors
    /// When something cannot be looked at or removed.
    pub fn sweep(&self) -> Result<Vec<PathBuf>, FileError> {
        let mut swept = Vec::new();
        for name in file::names_in(&self.builds)? {
            let path = self.builds.join(&name);
            if !name.contains(ASIDE) {
                continue;
            }
            let Some(_alone) = Pin::exclusive(&path)? else {
                continue;
            };
            file::remove_tree(&path)?;
            info!(path = %path.display(), "swept");
            swept.push(path);
        }
        Ok(swept)
    }

    /// The head of one build's header, verified.
    ///
    /// # Errors
    /// When it cannot be read, or is not as it was written.
    pub fn head(&self, id: &BuildId) -> Result<Head, ReadHeadError> {
        let path = self.directory(id).join(HEADER);
        let head = read_head(&path)?;
        if head.rows.first().is_some_and(|row| row.id == *id) {
            Ok(head)
        } else {
            Err(ReadHeadError::Decode {
                path,
                source: DecodeHeaderError::Field("own id"),
            })
        }
    }

    /// A new name beside that of a build.
    pub(super) fn aside(&self, id: &BuildId) -> PathBuf {
        self.builds
            .join(format!("{id}{ASIDE}{:016x}", rand::random::<u64>()))
    }

    /// Takes a build away in one step and gives the path at which it is to be removed. Who
    /// calls this holds its lock alone.
    pub(super) fn move_away(&self, id: &BuildId) -> Result<PathBuf, FileError> {
        let aside = self.aside(id);
        let directory = self.directory(id);
        std::fs::rename(&directory, &aside).map_err(FileError::of("move away", &directory))?;
        Ok(aside)
    }
}

/// Removes what was moved away. What cannot be removed now is swept later.
pub(super) fn remove_moved(aside: &Path) {
    if let Err(error) = file::remove_tree(aside) {
        warn!(%error, "the next sweep removes the rest of a build");
    }
}

/// Reads the head of a header and leaves its extents alone.
fn read_head(path: &Path) -> Result<Head, ReadHeadError> {
    use std::os::unix::fs::FileExt;

    let damaged = |source| ReadHeadError::Decode {
        path: path.to_owned(),
        source,
    };
    let header = file::open_regular(path)?;
    let read = |bytes: &mut [u8]| -> Result<(), ReadHeadError> {
        match header.read_exact_at(bytes, 0) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged(DecodeHeaderError::Length {
                    found: 0,
                    wanted: bytes.len(),
                }))
            }
            Err(error) => Err(FileError::of("read", path)(error).into()),
        }
    };
    let mut fixed = [0; FIXED_LENGTH];
    read(&mut fixed)?;
    let mut bytes = vec![0; codec::head_length_of(&fixed).map_err(damaged)?];
    read(&mut bytes)?;
    codec::decode_head(&bytes).map_err(damaged)
}
