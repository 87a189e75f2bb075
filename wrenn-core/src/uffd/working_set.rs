//! The working set: what a VM needed first after a resume, in the order in which it did.
//!
//! It is recorded at the first resume of a snapshot and prefetched at all later ones, see
//! *Benchmarking, Analysis, and Optimization of Serverless Function Snapshots* (REAP,
//! ASPLOS 2021). In its file, numbers are little-endian:
//!
//! ```text
//!  0  magic  "WRENNWS\0"
//!  8  version, u32: 1
//! 12  count of ranges, u32
//! 16  bytes of guest memory, u64
//! 24  count × { offset u64, length u64 }, in bytes
//!  …  SHA-256 of all that stands before
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use sha2::{Digest, Sha256};

use super::{PAGE_SIZE, WorkingSetFile};

const MAGIC: [u8; 8] = *b"WRENNWS\0";
const VERSION: u32 = 1;
const HEADER_LENGTH: usize = 24;
const RANGE_LENGTH: usize = 16;
const DIGEST_LENGTH: usize = 32;
/// With the usual bursts this is 8 GiB of memory, and a file of 1 MiB.
const MOST_RANGES: usize = 64 * 1024;

/// A stretch of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// Why a working set is not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadWorkingSetError {
    /// It cannot be read.
    #[error("cannot read the working set {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else, was cut short, or has a wrong checksum.
    #[error("{0} is no working set, or damaged")]
    Damaged(PathBuf),
    /// Another release wrote it.
    #[error("the working set {path} has version {version}; this program reads {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// It belongs to another VM.
    #[error("the working set {path} is of other memory")]
    OtherMemory {
        /// The file.
        path: PathBuf,
    },
}

/// What a VM needed first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    ranges: Vec<Range>,
}

impl WorkingSet {
    /// Reads one of a VM with so many bytes of memory. `None` if there is no such file.
    ///
    /// # Errors
    /// If it cannot be read, or is not one of this memory.
    pub fn load(path: &Path, memory: u64) -> Result<Option<Self>, LoadWorkingSetError> {
        let path_too = path.to_owned();
        let longest = HEADER_LENGTH + MOST_RANGES * RANGE_LENGTH + DIGEST_LENGTH;
        let mut bytes = Vec::new();
        let read =
            File::open(path).and_then(|file| file.take(longest as u64 + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => Self::parse(&bytes, path, memory).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LoadWorkingSetError::Read {
                path: path_too,
                source,
            }),
        }
    }

    fn parse(bytes: &[u8], path: &Path, memory: u64) -> Result<Self, LoadWorkingSetError> {
        let path = path.to_owned();
        let Some((version, count, of_memory, ranges)) = fields(bytes) else {
            return Err(LoadWorkingSetError::Damaged(path));
        };
        if version != VERSION {
            return Err(LoadWorkingSetError::Version { path, version });
        }
        let whole = bytes
            .split_last_chunk::<DIGEST_LENGTH>()
            .is_some_and(|(before, digest)| Sha256::digest(before).as_slice() == digest)
            && ranges.len() == (count as usize).saturating_mul(RANGE_LENGTH);
        if !whole {
            return Err(LoadWorkingSetError::Damaged(path));
        }
        let ranges: Vec<Range> = ranges
            .chunks_exact(RANGE_LENGTH)
            .map(|range| Range {
                offset: number(range.get(..8)),
                length: number(range.get(8..)),
            })
            .collect();
        let fits = |range: &Range| {
            let end = range.offset.checked_add(range.length);
            range.offset.is_multiple_of(PAGE_SIZE) && end.is_some_and(|end| end <= memory)
        };
        if of_memory != memory || !ranges.iter().all(fits) {
            return Err(LoadWorkingSetError::OtherMemory { path });
        }
        Ok(Self { ranges })
    }

    fn to_bytes(&self, memory: u64) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        let count = u32::try_from(self.ranges.len()).unwrap_or(u32::MAX);
        bytes.extend(count.to_le_bytes());
        bytes.extend(memory.to_le_bytes());
        for range in &self.ranges {
            bytes.extend(range.offset.to_le_bytes());
            bytes.extend(range.length.to_le_bytes());
        }
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        bytes
    }

    /// The ranges, in the order in which they were needed.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// How many bytes they hold.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.length).sum()
    }
}

/// Version, count, bytes of memory, ranges.
fn fields(bytes: &[u8]) -> Option<(u32, u32, u64, &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER_LENGTH)?;
    let ranges = rest.get(..rest.len().checked_sub(DIGEST_LENGTH)?)?;
    let word = |at: usize| header.get(at..at + 4)?.try_into().ok();
    header.starts_with(&MAGIC).then_some(())?;
    Some((
        u32::from_le_bytes(word(8)?),
        u32::from_le_bytes(word(12)?),
        number(header.get(16..)),
        ranges,
    ))
}

fn number(bytes: Option<&[u8]>) -> u64 {
    let bytes = bytes.unwrap_or_default();
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Why a working set could not be kept. The VM goes on without.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the working set {path}")]
pub struct RecordError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Writes down what is needed, and gives the file its name when it is whole. Dropping it
/// throws the record away.
///
/// It holds its directory open, because a pager that serves may open none, and its user
/// could not reach this one by its path.
#[derive(Debug)]
pub(super) struct Recorder {
    path: PathBuf,
    directory: File,
    name: OsString,
    partial: OsString,
    file: File,
    memory: u64,
    window: Duration,
    recorded: Option<fn()>,
    ranges: Mutex<Vec<Range>>,
}

impl Recorder {
    /// Makes the file aside.
    pub(super) fn new(set: &WorkingSetFile, memory: u64) -> Result<Self, RecordError> {
        let path = set.path.as_path();
        let failed = |source| RecordError {
            path: path.to_owned(),
            source,
        };
        let name = path.file_name().unwrap_or_default().to_owned();
        let mut partial = name.clone();
        partial.push(format!(".{}.partial", std::process::id()));
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = File::open(directory).map_err(failed)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = openat(&directory, &partial, flags, Mode::from_raw_mode(0o644));
        let file = file.map_err(|errno| failed(errno.into()))?.into();
        Ok(Self {
            path: path.to_owned(),
            directory,
            name,
            partial,
            file,
            memory,
            window: set.window,
            recorded: set.recorded,
            ranges: Mutex::default(),
        })
    }

    /// Says that the file is there.
    pub(super) fn tell(&self) {
        if let Some(recorded) = self.recorded {
            recorded();
        }
    }

    /// Until when a VM that begins now is recorded.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.window
    }

    /// Adds what was brought for a fault.
    pub(super) fn needed(&self, start: u64, end: u64) {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let room = ranges.len() < MOST_RANGES;
        match ranges.last_mut() {
            Some(last) if last.offset + last.length == start => last.length += end - start,
            _ if room => ranges.push(Range {
                offset: start,
                length: end - start,
            }),
            _ => {}
        }
    }

    /// Writes the file and gives it its name. What it holds is a hint, so it is not worth
    /// an fsync: a file that a crash has damaged is refused by its checksum.
    pub(super) fn publish(&self) -> Result<WorkingSet, RecordError> {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let set = WorkingSet {
            ranges: std::mem::take(&mut *ranges),
        };
        if set.ranges.is_empty() {
            return Ok(set);
        }
        let written = (&self.file)
            .write_all(&set.to_bytes(self.memory))
            .and_then(|()| {
                let directory = &self.directory;
                Ok(renameat(directory, &self.partial, directory, &self.name)?)
            });
        match written {
            Ok(()) => Ok(set),
            Err(source) => Err(RecordError {
                path: self.path.clone(),
                source,
            }),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        match unlinkat(&self.directory, &self.partial, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                let path = self.path.with_file_name(&self.partial);
                tracing::warn!(%error, path = %path.display(), "cannot remove a file");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn at(path: &Path) -> WorkingSetFile {
        WorkingSetFile {
            path: path.to_owned(),
            window: Duration::ZERO,
            recorded: None,
        }
    }

    #[test]
    fn it_comes_back_in_order_and_leaves_nothing_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("working-set.bin");
        assert_eq!(WorkingSet::load(&path, 1 << 20).unwrap(), None);
        let recorder = Recorder::new(&at(&path), 1 << 20).unwrap();
        recorder.needed(8192, 12288);
        recorder.needed(12288, 16384);
        recorder.needed(0, 4096);
        let written = recorder.publish().unwrap();
        drop(recorder);
        let range = |offset, length| Range { offset, length };
        assert_eq!(written.ranges(), [range(8192, 8192), range(0, 4096)]);
        assert_eq!(WorkingSet::load(&path, 1 << 20).unwrap(), Some(written));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        let error = WorkingSet::load(&path, 1 << 21).unwrap_err();
        assert!(matches!(error, LoadWorkingSetError::OtherMemory { .. }));
    }

    #[test]
    fn one_that_is_dropped_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("working-set.bin");
        let recorder = Recorder::new(&at(&path), 1 << 20).unwrap();
        recorder.needed(0, 4096);
        drop(recorder);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let set = WorkingSet {
            ranges: vec![Range {
                offset: 4096,
                length: 8192,
            }],
        };
        let good = set.to_bytes(1 << 20);
        let path = Path::new("working-set.bin");
        assert_eq!(WorkingSet::parse(&good, path, 1 << 20).unwrap(), set);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            WorkingSet::parse(&bad, path, 1 << 20).unwrap_err();
        }
        for length in 0..good.len() {
            WorkingSet::parse(&good[..length], path, 1 << 20).unwrap_err();
        }
    }
}
