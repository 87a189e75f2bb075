//! Making one image of a base image and what was written over it.
//!
//! What the image holds is read from the device; where to look is known: where the store
//! has chunks, and where the base image has data. On a file system that shares blocks the
//! image begins as a clone of the base image, and only the written chunks are touched.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FallocateFlags, RenameFlags, SeekFrom, fallocate, ioctl_ficlone, renameat_with, seek,
};
use rustix::io::Errno;

use super::shared::ThreadLost;
use super::store::{self, ReadStoreError, StoreDamage};

/// The unit in which zeros become holes: the block of most file systems.
const BLOCK: usize = 4096;
const BUFFER: usize = 1 << 20;

/// Why a disk could not be flattened. There is no new file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum FlattenError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the tables of store {path} are damaged")]
    Damaged {
        path: PathBuf,
        #[source]
        damage: StoreDamage,
    },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no space left for {path}; free some")]
    NoSpace { path: PathBuf },
    #[error("{path} exists already; images never change, so choose another name")]
    Exists { path: PathBuf },
    #[error("cannot flatten the disk of a sandbox")]
    Thread(#[from] ThreadLost),
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) device: PathBuf,
    pub(super) base: PathBuf,
    pub(super) store: PathBuf,
    pub(super) bytes: u64,
    pub(super) to: PathBuf,
}

impl Plan {
    /// Blocks the thread.
    pub(super) fn run(&self) -> Result<(), FlattenError> {
        let aside = self.aside();
        let done = self.write(&aside).and_then(|()| self.publish(&aside));
        if done.is_err() {
            // It may not even be there.
            drop(std::fs::remove_file(&aside));
        }
        done
    }

    /// Beside the new file, so that it can be renamed.
    fn aside(&self) -> PathBuf {
        let name = self.to.file_name().unwrap_or_default().to_string_lossy();
        self.to
            .with_file_name(format!(".{name}.{}.partial", std::process::id()))
    }

    fn write(&self, aside: &Path) -> Result<(), FlattenError> {
        let device = File::open(&self.device).map_err(|error| unreadable(&self.device, error))?;
        // What was written by way of the page cache goes to the store, and its tables too.
        device
            .sync_all()
            .map_err(|error| unreadable(&self.device, error))?;
        let base = File::open(&self.base).map_err(|error| unreadable(&self.base, error))?;
        let mut ranges = self.written()?;
        let image = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(aside)
            .map_err(|error| self.unwritable(error))?;
        let cloned = ioctl_ficlone(&image, &base).is_ok();
        if !cloned {
            image
                .set_len(self.bytes)
                .map_err(|error| self.unwritable(error))?;
            ranges
                .extend(data_of(&base, self.bytes).map_err(|error| unreadable(&self.base, error))?);
        }
        let mut buffer = vec![0; BUFFER];
        for range in merge(ranges) {
            self.copy(&device, &image, range, &mut buffer, cloned)?;
        }
        image.sync_all().map_err(|error| self.unwritable(error))
    }

    /// The parts of the disk that the store holds.
    fn written(&self) -> Result<Vec<Range<u64>>, FlattenError> {
        let store = File::open(&self.store).map_err(|error| unreadable(&self.store, error))?;
        let contents = store::read(&store, self.bytes).map_err(|error| match error {
            ReadStoreError::Io(source) => unreadable(&self.store, source),
            ReadStoreError::Damaged(damage) => FlattenError::Damaged {
                path: self.store.clone(),
                damage,
            },
        })?;
        let chunk = contents.chunk.bytes();
        Ok(contents
            .written
            .into_iter()
            .map(|number| number * chunk..((number + 1) * chunk).min(self.bytes))
            .collect())
    }

    fn copy(
        &self,
        device: &File,
        image: &File,
        range: Range<u64>,
        buffer: &mut [u8],
        punch: bool,
    ) -> Result<(), FlattenError> {
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let part = &mut buffer[..left.min(BUFFER)];
            device
                .read_exact_at(part, at)
                .map_err(|error| unreadable(&self.device, error))?;
            for (zero, run) in runs(part) {
                let (from, length) = (at + run.start as u64, run.len() as u64);
                let written = match (zero, punch) {
                    (false, _) => image.write_all_at(&part[run], from),
                    (true, false) => Ok(()),
                    (true, true) => {
                        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                        fallocate(image, flags, from, length).map_err(Into::into)
                    }
                };
                written.map_err(|error| self.unwritable(error))?;
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Gives the finished image its name.
    fn publish(&self, aside: &Path) -> Result<(), FlattenError> {
        match renameat_with(CWD, aside, CWD, &self.to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(FlattenError::Exists {
                    path: self.to.clone(),
                });
            }
            Err(errno) => return Err(self.unwritable(errno.into())),
        }
        let directory = self.to.parent().filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))
            .and_then(|directory| directory.sync_all())
            .map_err(|error| self.unwritable(error))
    }

    fn unwritable(&self, source: io::Error) -> FlattenError {
        let path = self.to.clone();
        if source.kind() == io::ErrorKind::StorageFull {
            FlattenError::NoSpace { path }
        } else {
            FlattenError::Write { path, source }
        }
    }
}

fn unreadable(path: &Path, source: io::Error) -> FlattenError {
    FlattenError::Read {
        path: path.to_owned(),
        source,
    }
}

/// Where a file has data and no holes.
fn data_of(file: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < bytes {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        ranges.push(start..at.min(bytes));
    }
    Ok(ranges)
}

/// The same ranges in order, without overlaps and with as few ends as can be.
fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Splits a buffer into runs of blocks that are zero and of blocks that are not.
fn runs(bytes: &[u8]) -> Vec<(bool, Range<usize>)> {
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    let mut at = 0;
    for block in bytes.chunks(BLOCK) {
        let zero = block.iter().all(|byte| *byte == 0);
        let end = at + block.len();
        match runs.last_mut() {
            Some((kind, run)) if *kind == zero => run.end = end,
            _ => runs.push((zero, at..end)),
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merged_ranges_cover_the_same_and_stay_apart(
            ranges in prop::collection::vec((0_u64..200, 1_u64..20), 0..40),
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let merged = merge(ranges.clone());
            for at in 0..220 {
                let before = ranges.iter().any(|range| range.contains(&at));
                prop_assert_eq!(merged.iter().any(|range| range.contains(&at)), before);
            }
            for pair in merged.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
        }

        #[test]
        fn runs_tell_zeros_from_the_rest(
            blocks in prop::collection::vec(any::<bool>(), 0..40), tail in 0_usize..BLOCK,
        ) {
            let mut bytes: Vec<u8> = blocks
                .iter()
                .flat_map(|zero| std::iter::repeat_n(u8::from(!zero), BLOCK))
                .collect();
            bytes.extend(std::iter::repeat_n(7, tail));
            let mut at = 0;
            for (zero, run) in runs(&bytes) {
                prop_assert_eq!(run.start, at);
                prop_assert!(bytes[run.clone()].iter().all(|byte| (*byte == 0) == zero));
                at = run.end;
            }
            prop_assert_eq!(at, bytes.len());
        }
    }
}
