//! Entries and archives that are refused.

use std::io;

/// Why an archive is not unpacked any further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It would be written outside of the target.
    #[error("the sandbox sent an entry that leads out of the target: {name:?}")]
    LeadsOut {
        /// The entry.
        name: String,
    },
    /// It lies below a file or a link, which is not followed.
    #[error("the entry {name:?} lies below something that is no directory")]
    NotBelowDirectory {
        /// The entry.
        name: String,
    },
    /// It is a file where a directory is, or the other way round.
    #[error("the entry {name:?} is of another kind than what is there")]
    OtherKind {
        /// The entry.
        name: String,
    },
    /// A hard link to something that did not come before it.
    #[error("the entry {name:?} is a hard link to something that is not there")]
    NoLinkTarget {
        /// The entry.
        name: String,
    },
    /// Sparse files would grow without bounds.
    #[error("the entry {name:?} is stored as a sparse file")]
    Sparse {
        /// The entry.
        name: String,
    },
    /// Its extended header is too long, or makes no sense.
    #[error("the extended header of an entry makes no sense")]
    BadExtension,
    /// A local file cannot be written.
    #[error("cannot write {name:?}")]
    Write {
        /// The entry.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ends too early, or is none.
    #[error("cannot read the archive that the sandbox sent")]
    Read(#[source] io::Error),
}

/// The treatment of symbolic links that lead out of the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OutwardLinks {
    #[default]
    Keep,
    LeaveOut,
}

/// The result of unpacking an archive.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub(crate) skipped: Vec<Skipped>,
    /// Names of links that were made and lead out of the target.
    pub(crate) outward_links: Vec<String>,
}

/// An entry that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Its name, which may hold control codes of a terminal.
    pub name: String,
    /// Why.
    pub reason: &'static str,
}

impl Skipped {
    pub(super) fn new(name: &[u8], reason: &'static str) -> Self {
        Self {
            name: String::from_utf8_lossy(name).into_owned(),
            reason,
        }
    }
}
