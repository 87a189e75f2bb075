//! Where a guest's memory comes from: sorted extents over open files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::PAGE_SIZE;
use super::sys::{FileMapping, SourceAddress};

/// A stretch of guest memory that has one origin.
///
/// `offset` counts bytes of guest memory as snapshots do: regions one after the other,
/// without the holes that the guest's address space may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Where its contents are.
    pub backing: Backing,
}

impl Extent {
    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Where the contents of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backing {
    /// Nowhere: all bytes are zero.
    Zero,
    /// In one of the files.
    File {
        /// Which of them.
        index: u32,
        /// Where in the file the extent begins.
        offset: u64,
    },
}

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file cannot be opened.
    #[error("cannot open the memory file {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be mapped.
    #[error("cannot map the memory file {path}")]
    Map {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file ends before what is to be read from it.
    #[error("{path} holds {has} bytes and must hold {needs}: the snapshot is damaged")]
    TooShort {
        /// The file.
        path: PathBuf,
        /// What must be there.
        needs: u64,
        /// What is there.
        has: u64,
    },
    /// An extent names a file that is not in the list.
    #[error("the extent at {offset:#x} names file {index} of {files}")]
    NoSuchFile {
        /// Where the extent begins.
        offset: u64,
        /// What it names.
        index: u32,
        /// How many files there are.
        files: usize,
    },
    /// An extent does not begin where the one before it ends.
    #[error("an extent begins at {found:#x} where one must begin at {expected:#x}")]
    NotContiguous {
        /// Where it must begin.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// An extent is not made of whole pages, or too long to be one.
    #[error("the extent at {offset:#x} is not made of whole pages of {PAGE_SIZE} bytes")]
    NotWholePages {
        /// Where it begins.
        offset: u64,
    },
    /// There is nothing in it.
    #[error("the source has no extents")]
    Empty,
}

#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    file: File,
    mapping: Option<FileMapping>,
}

/// The memory of a guest as it was saved.
///
/// Files are mapped shared and read-only, so that all restores of one build share its pages
/// in the page cache. Only the kernel reads the mapping.
#[derive(Debug)]
pub struct MemorySource {
    extents: Vec<Extent>,
    files: Vec<SourceFile>,
}

impl MemorySource {
    /// Opens the files and checks that every extent lies in its file. Extents are in order
    /// and leave no gap; the first begins at 0.
    ///
    /// # Errors
    /// If they don't, or if a file cannot be opened or is too short.
    pub fn open(extents: Vec<Extent>, files: &[PathBuf]) -> Result<Self, SourceError> {
        let mut needs = vec![0; files.len()];
        let mut expected = 0;
        for extent in &extents {
            let found = extent.offset;
            if found != expected {
                return Err(SourceError::NotContiguous { expected, found });
            }
            let not_whole = SourceError::NotWholePages { offset: found };
            let Some(end) = found.checked_add(extent.length) else {
                return Err(not_whole);
            };
            let mut whole = extent.length > 0 && extent.length.is_multiple_of(PAGE_SIZE);
            if let Backing::File { index, offset } = extent.backing {
                let count = files.len();
                let Some(need) = needs.get_mut(index as usize) else {
                    return Err(SourceError::NoSuchFile {
                        offset: found,
                        index,
                        files: count,
                    });
                };
                let end_in_file = offset.checked_add(extent.length);
                whole &= offset.is_multiple_of(PAGE_SIZE) && end_in_file.is_some();
                *need = end_in_file.unwrap_or(u64::MAX).max(*need);
            }
            if !whole {
                return Err(not_whole);
            }
            expected = end;
        }
        if extents.is_empty() {
            return Err(SourceError::Empty);
        }
        let files = files
            .iter()
            .zip(needs)
            .map(|(path, needs)| SourceFile::open(path, needs))
            .collect::<Result<_, _>>()?;
        Ok(Self { extents, files })
    }

    /// One file that holds all memory from its first byte on.
    ///
    /// # Errors
    /// If it cannot be opened or is not made of whole pages.
    pub fn of_file(path: &Path) -> Result<Self, SourceError> {
        let metadata = std::fs::metadata(path).map_err(|source| SourceError::Open {
            path: path.to_owned(),
            source,
        })?;
        let extent = Extent {
            offset: 0,
            length: metadata.len(),
            backing: Backing::File {
                index: 0,
                offset: 0,
            },
        };
        Self::open(vec![extent], &[path.to_owned()])
    }

    /// How many bytes of guest memory there are.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.extents.last().map_or(0, Extent::end)
    }

    /// The extent that holds this offset, which lies within the memory.
    pub(super) fn at(&self, offset: u64) -> Option<Extent> {
        let behind = self
            .extents
            .partition_point(|extent| extent.offset <= offset);
        let extent = *self.extents.get(behind.checked_sub(1)?)?;
        (offset < extent.end()).then_some(extent)
    }

    /// Brings a part of a file into memory. An error is one of the disk, or says that the
    /// file was cut short.
    pub(super) fn populate(&self, place: FilePlace, length: u64) -> Result<(), ReadError> {
        self.on_mapping(place, |mapping| mapping.populate(place.offset, length))
    }

    /// Where the kernel finds the contents.
    pub(super) fn address(&self, place: FilePlace) -> Result<SourceAddress, ReadError> {
        self.on_mapping(place, |mapping| Ok(mapping.address(place.offset)))
    }

    /// Reads a range of guest memory that may span many extents.
    pub(super) fn read(&self, mut offset: u64, mut into: &mut [u8]) -> Result<(), ReadError> {
        while let Some(extent) = self.at(offset).filter(|_| !into.is_empty()) {
            let left = usize::try_from(extent.end() - offset).unwrap_or(usize::MAX);
            let (piece, rest) = into.split_at_mut(left.min(into.len()));
            match FilePlace::of(&extent, offset) {
                Some(place) => {
                    self.on_file(place, |file| file.file.read_exact_at(piece, place.offset))?
                }
                None => piece.fill(0),
            }
            offset += piece.len() as u64;
            into = rest;
        }
        Ok(())
    }

    /// What to say of a place that the kernel could not read.
    pub(super) fn unreadable(&self, place: FilePlace) -> Result<(), ReadError> {
        self.on_file(place, |_| Err(Errno::EFAULT.into()))
    }

    fn on_mapping<T>(
        &self,
        place: FilePlace,
        read: impl FnOnce(&FileMapping) -> io::Result<T>,
    ) -> Result<T, ReadError> {
        self.on_file(place, |file| match &file.mapping {
            Some(mapping) => read(mapping),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        })
    }

    fn on_file<T>(
        &self,
        place: FilePlace,
        read: impl FnOnce(&SourceFile) -> io::Result<T>,
    ) -> Result<T, ReadError> {
        let Some(file) = self.files.get(place.index as usize) else {
            let path = PathBuf::from(format!("number {}", place.index));
            let source = io::ErrorKind::NotFound.into();
            return Err(ReadError { path, source });
        };
        read(file).map_err(|source| ReadError {
            path: file.path.clone(),
            source,
        })
    }
}

/// A memory file cannot be read. The usual cause is a bad disk, or that somebody cut the
/// file short while it was in use.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the memory file {path}")]
pub struct ReadError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A place in one of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FilePlace {
    index: u32,
    offset: u64,
}

impl FilePlace {
    /// Where the contents of guest memory at `at` are, which lies in `extent`. `None` if
    /// they are zero.
    pub(super) fn of(extent: &Extent, at: u64) -> Option<Self> {
        match extent.backing {
            Backing::Zero => None,
            Backing::File { index, offset } => Some(Self {
                index,
                offset: offset + (at - extent.offset),
            }),
        }
    }

    /// So many bytes further on.
    pub(super) fn after(self, bytes: u64) -> Self {
        Self {
            offset: self.offset + bytes,
            ..self
        }
    }
}

impl SourceFile {
    fn open(path: &Path, needs: u64) -> Result<Self, SourceError> {
        let path = path.to_owned();
        let opened = File::open(&path).and_then(|file| {
            let metadata = file.metadata()?;
            Ok((file, metadata.len()))
        });
        let (file, has) = match opened {
            Ok(opened) => opened,
            Err(source) => return Err(SourceError::Open { path, source }),
        };
        if has < needs {
            return Err(SourceError::TooShort { path, needs, has });
        }
        let mapping = match usize::try_from(needs) {
            Ok(0) => Ok(None),
            Ok(needs) => FileMapping::new(&file, needs).map(Some),
            Err(_) => Err(io::ErrorKind::FileTooLarge.into()),
        };
        match mapping {
            Ok(mapping) => Ok(Self {
                path,
                file,
                mapping,
            }),
            Err(source) => Err(SourceError::Map { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zero(offset: u64, length: u64) -> Extent {
        Extent {
            offset,
            length,
            backing: Backing::Zero,
        }
    }

    fn file(offset: u64, length: u64, at: u64) -> Extent {
        Extent {
            offset,
            length,
            backing: Backing::File {
                index: 0,
                offset: at,
            },
        }
    }

    #[test]
    fn extents_are_found_and_read_across() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        std::fs::write(&path, [vec![1; 4096], vec![2; 4096]].concat()).unwrap();
        let extents = vec![file(0, 4096, 4096), zero(4096, 8192), file(12288, 4096, 0)];
        let source = MemorySource::open(extents.clone(), &[path]).unwrap();
        assert_eq!(source.length(), 16384);
        assert_eq!(source.at(0), Some(extents[0]));
        assert_eq!(source.at(4096), Some(extents[1]));
        assert_eq!(source.at(12287), Some(extents[1]));
        assert_eq!(source.at(16383), Some(extents[2]));
        assert_eq!(source.at(16384), None);
        let mut bytes = vec![9; 16384];
        source.read(0, &mut bytes).unwrap();
        assert_eq!(
            bytes,
            [vec![2; 4096], vec![0; 8192], vec![1; 4096]].concat()
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        std::fs::write(&path, [0; 4096]).unwrap();
        let open = |extents| MemorySource::open(extents, std::slice::from_ref(&path)).unwrap_err();
        assert!(matches!(open(vec![]), SourceError::Empty));
        for extents in [
            vec![zero(4096, 4096)],
            vec![zero(0, 8192), zero(4096, 4096)],
            vec![zero(0, 4096), zero(8192, 4096)],
        ] {
            let error = open(extents);
            assert!(
                matches!(error, SourceError::NotContiguous { .. }),
                "{error}"
            );
        }
        for extents in [
            vec![zero(0, 0)],
            vec![zero(0, 100)],
            vec![file(0, 4096, 1)],
            vec![file(0, 4096, u64::MAX - 4095)],
            vec![zero(0, 4096), zero(4096, u64::MAX - 4095)],
        ] {
            let error = open(extents);
            assert!(
                matches!(error, SourceError::NotWholePages { .. }),
                "{error}"
            );
        }
        let error = open(vec![file(0, 8192, 0)]);
        assert!(
            matches!(
                error,
                SourceError::TooShort {
                    needs: 8192,
                    has: 4096,
                    ..
                }
            ),
            "{error}"
        );
        let mut other = file(0, 4096, 0);
        other.backing = Backing::File {
            index: 1,
            offset: 0,
        };
        assert!(matches!(open(vec![other]), SourceError::NoSuchFile { .. }));
        let missing = MemorySource::of_file(Path::new("/no/such/file")).unwrap_err();
        assert!(matches!(missing, SourceError::Open { .. }));
    }
}
