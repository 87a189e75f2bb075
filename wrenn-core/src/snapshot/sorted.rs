//! Leaving out of a memory file what need not be in it: pages that are as they were before,
//! and pages that are zero.
//!
//! Which pages changed is what the hypervisor says, and KVM says too many: where it may, it
//! maps a page for writing when the guest reads it, and counts it as written then. So what
//! was only *read* after a resume by a pager comes with the next diff. It lies here and
//! there all over memory, and each place costs the file system an extent.
//!
//! What a page held before is in the page cache soon after a resume, so it is compared.
//! Nothing is read from the disk for it: what is not in memory counts as changed.
//!
//! What is zero is noted in the header and needs no room. A VMM writes zeros for pages that
//! were something else before, such as those that a guest has freed, and some VMMs write all
//! zeros of a full snapshot.
//!
//! If there is much of either, the rest is copied to a file of its own.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::extent::{Geometry, Source};
use super::open::Snapshot;
use super::scan::is_zero;
use super::sparse;

/// Bytes that are compared at a time, unless a page is larger.
const PIECE: u64 = 64 << 10;

/// What a VMM wrote, by what becomes of it. Ranges are of bytes, whole pages, and in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sorted {
    /// What is to be kept.
    pub(super) kept: Vec<Range<u64>>,
    /// What is zero, and was not before as far as is known.
    pub(super) zeros: Vec<Range<u64>>,
    /// Bytes of pages that hold what they held.
    pub(super) unchanged: u64,
}

impl Sorted {
    /// Compares what a VMM wrote with what its memory was before. Without a snapshot before
    /// it, all of memory was something else.
    pub(super) fn of(
        memory: &File,
        geometry: Geometry,
        parent: Option<&Snapshot>,
    ) -> io::Result<Self> {
        let (page, size) = (geometry.page_size(), geometry.memory_size());
        let mut new = vec![0; length(page.max(PIECE))];
        let mut old = new.clone();
        let mut sorted = Self::default();
        let mut at = 0;
        while let Some(data) = sparse::next_data(memory, at, size)? {
            // A page of which a part is data was written as a whole.
            let end = data.end.next_multiple_of(page);
            at = data.start / page * page;
            while at < end {
                let piece = ..length((end - at).min(new.len() as u64));
                memory.read_exact_at(&mut new[piece], at)?;
                let known = match parent {
                    Some(parent) => read_cached(parent, at, &mut old[piece])?,
                    None => 0,
                };
                let before = old[..known].chunks_exact(length(page)).map(Some);
                let before = before.chain(std::iter::repeat(None));
                for (now, before) in new[piece].chunks_exact(length(page)).zip(before) {
                    let this = at..at + page;
                    at = this.end;
                    if before == Some(now) {
                        sorted.unchanged += page;
                    } else if is_zero(now) {
                        append(&mut sorted.zeros, this);
                    } else {
                        append(&mut sorted.kept, this);
                    }
                }
            }
        }
        Ok(sorted)
    }

    /// Whether there is enough to leave out for the rest to be copied.
    pub(super) fn is_worth_a_copy(&self) -> bool {
        (self.unchanged + bytes(&self.zeros)) * 3 > self.kept_bytes()
    }

    /// What a copy takes.
    pub(super) fn kept_bytes(&self) -> u64 {
        bytes(&self.kept)
    }

    /// Writes what is kept into a new file. Through memory: the old file, as a rule, is in the
    /// page cache and not on the disk yet, and what makes holes of parts of it, or shares
    /// them, would bring them there first.
    pub(super) fn copy(&self, memory: &File, to: &File) -> io::Result<()> {
        to.set_len(memory.metadata()?.len())?;
        let mut buffer = vec![0; length(PIECE)];
        for range in &self.kept {
            for at in range.clone().step_by(length(PIECE)) {
                let piece = ..length((range.end - at).min(PIECE));
                memory.read_exact_at(&mut buffer[piece], at)?;
                to.write_all_at(&buffer[piece], at)?;
            }
        }
        Ok(())
    }
}

fn append(ranges: &mut Vec<Range<u64>>, page: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == page.start => last.end = page.end,
        _ => ranges.push(page),
    }
}

fn bytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Reads memory of a snapshot as far as it is in the page cache, from the start of the
/// buffer on. Returns how many bytes that are.
fn read_cached(snapshot: &Snapshot, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let end = offset + buffer.len() as u64;
    let mut known = 0;
    for extent in snapshot.header().extents().extents_in(offset..end) {
        let wanted = length(extent.length);
        let part = &mut buffer[known..known + wanted];
        let read = match extent.source {
            Source::Zero => {
                part.fill(0);
                wanted
            }
            Source::Build { row, offset } => {
                let file = snapshot.layers()[row as usize].memory();
                let parts = &mut [IoSliceMut::new(part)];
                match preadv2(file, parts, offset, ReadWriteFlags::NOWAIT) {
                    Ok(read) => read,
                    // Not in memory, or not to be told whether.
                    Err(Errno::AGAIN | Errno::OPNOTSUPP) => 0,
                    Err(errno) => return Err(errno.into()),
                }
            }
        };
        known += read;
        if read < wanted {
            break;
        }
    }
    Ok(known)
}

/// The length of something in memory.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RootDirectory;
    use crate::snapshot::{BuildDetails, BuildStore, MemoryFile};

    const PAGE: u64 = 4096;
    const PAGES: u64 = 64;

    /// A build whose memory is 1 to 32 page by page, and zero behind.
    fn snapshot(root: &std::path::Path) -> Snapshot {
        let store = BuildStore::open(&RootDirectory::new(root)).unwrap();
        let writer = store.begin().unwrap();
        let memory = File::create(writer.memory()).unwrap();
        memory.set_len(PAGES * PAGE).unwrap();
        for page in 0..32 {
            write(&memory, page, page + 1);
        }
        std::fs::write(writer.vmstate(), "state").unwrap();
        let geometry = Geometry::new(PAGES * PAGE, PAGE).unwrap();
        let memory = MemoryFile::Full(geometry);
        writer.publish(memory, BuildDetails::default()).unwrap()
    }

    fn write(memory: &File, page: u64, value: u64) {
        let bytes = [u8::try_from(value).unwrap(); 4096];
        memory.write_all_at(&bytes, page * PAGE).unwrap();
    }

    fn pages_in(memory: &File) -> Vec<u64> {
        let (mut pages, mut at) = (Vec::new(), 0);
        while let Some(data) = sparse::next_data(memory, at, PAGES * PAGE).unwrap() {
            pages.extend(data.start / PAGE..data.end / PAGE);
            at = data.end;
        }
        pages
    }

    #[test]
    fn zeros_of_a_full_file_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let full = tempfile::tempfile_in(directory.path()).unwrap();
        full.write_all_at(&vec![0; 64 * 4096], 0).unwrap();
        for page in [0, 1, 40] {
            write(&full, page, 5);
        }
        let geometry = Geometry::new(PAGES * PAGE, PAGE).unwrap();
        let sorted = Sorted::of(&full, geometry, None).unwrap();
        assert_eq!(sorted.kept, [0..2 * PAGE, 40 * PAGE..41 * PAGE]);
        assert_eq!(sorted.zeros, [2 * PAGE..40 * PAGE, 41 * PAGE..64 * PAGE]);
        assert!(sorted.is_worth_a_copy());
        let mut little = Sorted::default();
        append(&mut little.kept, 0..8 * PAGE);
        append(&mut little.zeros, 8 * PAGE..9 * PAGE);
        little.unchanged = PAGE;
        assert!(!little.is_worth_a_copy());
    }

    #[test]
    fn what_holds_what_it_held_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let parent = snapshot(directory.path());
        let diff = tempfile::tempfile_in(directory.path()).unwrap();
        diff.set_len(PAGES * PAGE).unwrap();
        // The same, zeros among them; something else; zeros for something and the reverse.
        for page in [0, 3, 4, 5, 20, 21, 22, 40] {
            write(&diff, page, if page < 32 { page + 1 } else { 0 });
        }
        write(&diff, 4, 99);
        write(&diff, 21, 0);
        write(&diff, 41, 1);
        let geometry = parent.header().head.geometry;
        let sorted = Sorted::of(&diff, geometry, Some(&parent)).unwrap();
        assert_eq!(sorted.unchanged, 6 * PAGE);
        assert_eq!(sorted.zeros, vec![21 * PAGE..22 * PAGE]);
        assert!(sorted.is_worth_a_copy());

        let kept = tempfile::tempfile_in(directory.path()).unwrap();
        sorted.copy(&diff, &kept).unwrap();
        assert_eq!(pages_in(&kept), [4, 41]);
        let (mut old, mut new) = ([0; 4096], [0; 4096]);
        for page in [4, 41] {
            diff.read_exact_at(&mut old, page * PAGE).unwrap();
            kept.read_exact_at(&mut new, page * PAGE).unwrap();
            assert_eq!(old, new, "{page}");
        }
    }
}
