//! Writes guest memory to a file.
//!
//! ```text
//! guest address   0 ────────────── 3 GiB   (hole)   4 GiB ─────────▶
//! file offset     0 ────────────── 3 GiB ─────────────────▶
//! ```
//!
//! A full file holds all of memory, with holes where it is zero. A page that nobody ever
//! touched is known to be zero without being read, if what lies behind it ([`Background`])
//! is: so a large guest that uses little is saved in the time that the little takes. Only
//! `/proc` tells; in a jail without it, all of memory is read.
//!
//! A file of differences has the same size and holds only pages that changed, at their
//! offsets. One that became zero is written as zeros: a hole means that it did not change.
//! An existing file of the right size is updated, so that differences can be merged into
//! the file that they are from, and a full snapshot may replace the one that this very
//! machine is mapped from: every page is written with what the guest sees in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use crate::memory::discard::Discarder;
use crate::memory::{GuestMemory, PAGE_SIZE, host_length};

/// How much is copied, looked at and written at a time: it stays in the second-level
/// cache, so that memory itself is read once.
const CHUNK: usize = 1 << 20;
const PAGES_IN_CHUNK: usize = CHUNK / PAGE_SIZE;
const ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// A page is there, or swapped out (Linux `Documentation/admin-guide/mm/pagemap.rst`).
const PAGEMAP_TOUCHED: u64 = 0b11 << 62;

/// A memory file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the memory file {path}")]
pub struct WriteMemoryError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is in the pages that nobody has touched since they were mapped.
#[derive(Debug)]
pub enum Background {
    /// Zeros.
    Zero,
    /// The memory file that the machine was loaded from.
    File(File),
    /// What a page-fault server gives.
    Pager,
}

impl Background {
    /// What gives pages back to the host.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn discarder(&self) -> io::Result<Discarder> {
        Ok(match self {
            Self::Zero | Self::Pager => Discarder::default(),
            Self::File(file) => Discarder::of_file(file.try_clone()?),
        })
    }

    /// Where pages may be other than zero, in order; `None` if it is not known.
    fn contents(&self) -> Option<Vec<Range<u64>>> {
        match self {
            Self::Zero => Some(Vec::new()),
            Self::File(file) => data_ranges(file).ok(),
            Self::Pager => None,
        }
    }
}

/// The ranges of a file that are no holes.
fn data_ranges(file: &File) -> io::Result<Vec<Range<u64>>> {
    use std::os::fd::AsFd;

    let mut ranges = Vec::new();
    let mut from = 0;
    loop {
        let Some(start) = crate::sys::sparse::data(file.as_fd(), from)? else {
            return Ok(ranges);
        };
        from = crate::sys::sparse::hole(file.as_fd(), start)?;
        ranges.push(start..from);
    }
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of data, holes left out.
    pub bytes: u64,
}

/// Writes all of memory. Nobody else may write to it meanwhile.
///
/// # Errors
/// If the file cannot be written.
pub fn write_full(
    path: &Path,
    memory: &GuestMemory,
    background: &Background,
) -> Result<Written, WriteMemoryError> {
    let contents = background.contents();
    let pagemap = contents
        .as_ref()
        .and_then(|_| File::open("/proc/self/pagemap").ok());
    let mut target = Target::open(path, memory)?;
    let mut buffer = vec![0; CHUNK];
    for (region, offset) in with_offsets(memory) {
        let length = host_length(region.len());
        for start in (0..length).step_by(CHUNK) {
            let pages = PAGES_IN_CHUNK.min((length - start) / PAGE_SIZE);
            let at = offset + start as u64;
            let touched = pagemap
                .as_ref()
                .and_then(|pagemap| touched(pagemap, region, start, pages));
            let untouched = |page: usize| {
                let (Some(touched), Some(contents)) = (&touched, &contents) else {
                    return false;
                };
                !touched[page] && !overlaps(contents, at + (page * PAGE_SIZE) as u64)
            };
            for (zero, run) in runs(pages, untouched) {
                let place = at + (run.start * PAGE_SIZE) as u64;
                if zero {
                    target.zeros(place, run.len() * PAGE_SIZE)?;
                    continue;
                }
                let piece = &mut buffer[..run.len() * PAGE_SIZE];
                read(region, start + run.start * PAGE_SIZE, piece);
                target.sparse(place, piece)?;
            }
        }
    }
    target.finish()
}

/// Writes the pages that memory's own bitmaps say have changed. Nobody else may write to
/// memory meanwhile.
///
/// # Errors
/// If the file cannot be written.
pub fn write_changed(path: &Path, memory: &GuestMemory) -> Result<Written, WriteMemoryError> {
    let mut target = Target::open(path, memory)?;
    let mut buffer = vec![0; CHUNK];
    for (region, offset) in with_offsets(memory) {
        let length = host_length(region.len());
        let Some(log) = bitmap_of(region).map(log_of) else {
            continue;
        };
        for start in (0..length).step_by(CHUNK) {
            let first = start / PAGE_SIZE;
            let words = first / 64..(first + PAGES_IN_CHUNK) / 64;
            if log
                .get(words)
                .is_some_and(|words| *words == [0; PAGES_IN_CHUNK / 64])
            {
                continue;
            }
            let pages = PAGES_IN_CHUNK.min((length - start) / PAGE_SIZE);
            let changed = |page: usize| {
                let page = first + page;
                (log[page / 64] >> (page % 64)) & 1 == 1
            };
            for (_, run) in runs(pages, changed).filter(|(changed, _)| *changed) {
                let from = start + run.start * PAGE_SIZE;
                let piece = &mut buffer[..run.len() * PAGE_SIZE];
                read(region, from, piece);
                target.data(offset + from as u64, piece)?;
            }
        }
    }
    target.finish()
}

/// Adds a log of KVM, one bit a page, to what the VMM itself has written.
pub fn merge_log(bitmap: &AtomicBitmap, log: &[u64]) {
    for (index, word) in log.iter().enumerate() {
        let mut rest = *word;
        while rest != 0 {
            bitmap.set_bit(index * 64 + rest.trailing_zeros() as usize);
            rest &= rest - 1;
        }
    }
}

/// All of a bitmap at once, in the form of KVM's log. Nobody else may change it meanwhile.
fn log_of(bitmap: &AtomicBitmap) -> Vec<u64> {
    // Only this call gives whole words. What it takes out is put back.
    let log = bitmap.get_and_reset();
    merge_log(bitmap, &log);
    log
}

/// The bitmap of a region, if changes are recorded.
pub fn bitmap_of(region: &GuestRegionMmap<Option<AtomicBitmap>>) -> Option<&AtomicBitmap> {
    let mapping: &MmapRegion<Option<AtomicBitmap>> = region;
    mapping.bitmap().as_ref()
}

/// Forgets what has changed so far.
pub fn forget_changes(memory: &GuestMemory) {
    memory
        .iter()
        .filter_map(bitmap_of)
        .for_each(AtomicBitmap::reset);
}

/// Each region with its offset in the file.
fn with_offsets(
    memory: &GuestMemory,
) -> impl Iterator<Item = (&GuestRegionMmap<Option<AtomicBitmap>>, u64)> {
    memory.iter().scan(0, |next, region| {
        let offset = *next;
        *next += region.len();
        Some((region, offset))
    })
}

/// Copies guest memory. The range lies within the region, by construction.
fn read(region: &GuestRegionMmap<Option<AtomicBitmap>>, start: usize, into: &mut [u8]) {
    let slice = region.get_slice(MemoryRegionAddress(start as u64), into.len());
    debug_assert!(slice.is_ok());
    if let Ok(slice) = slice {
        slice.copy_to(into);
    }
}

/// Which of some pages have ever been touched; `None` if the kernel does not tell.
fn touched(
    pagemap: &File,
    region: &GuestRegionMmap<Option<AtomicBitmap>>,
    start: usize,
    pages: usize,
) -> Option<Vec<bool>> {
    const ENTRY: usize = size_of::<u64>();
    let host = region
        .get_host_address(MemoryRegionAddress(start as u64))
        .ok()?;
    let mut entries = [0; PAGES_IN_CHUNK * ENTRY];
    let entries = &mut entries[..pages * ENTRY];
    let first = (host as usize / PAGE_SIZE * ENTRY) as u64;
    pagemap.read_exact_at(entries, first).ok()?;
    let (entries, _) = entries.as_chunks::<ENTRY>();
    Some(
        entries
            .iter()
            .map(|entry| u64::from_ne_bytes(*entry) & PAGEMAP_TOUCHED != 0)
            .collect(),
    )
}

/// Whether the page at `offset` lies in any of the sorted ranges, at least in part.
fn overlaps(ranges: &[Range<u64>], offset: u64) -> bool {
    let next = ranges.partition_point(|range| range.end <= offset);
    ranges
        .get(next)
        .is_some_and(|range| range.start < offset + PAGE_SIZE as u64)
}

/// Cuts `0..count` where `kind` changes.
fn runs(count: usize, kind: impl Fn(usize) -> bool) -> impl Iterator<Item = (bool, Range<usize>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == count {
            return None;
        }
        let here = kind(start);
        let end = (start + 1..count)
            .find(|page| kind(*page) != here)
            .unwrap_or(count);
        let run = start..end;
        start = end;
        Some((here, run))
    })
}

/// The file being written.
struct Target<'a> {
    path: &'a Path,
    file: File,
    /// Whether the file held something before, so that zeros must be made.
    updates: bool,
    /// Zeros that are not made yet.
    zeros: Range<u64>,
    written: Written,
}

impl<'a> Target<'a> {
    fn open(path: &'a Path, memory: &GuestMemory) -> Result<Self, WriteMemoryError> {
        let fail = |what| {
            move |source| WriteMemoryError {
                what,
                path: path.into(),
                source,
            }
        };
        let size: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail("open"))?;
        let found = file.metadata().map_err(fail("look at"))?.len();
        let updates = found == size;
        if !updates {
            file.set_len(0).map_err(fail("empty"))?;
            file.set_len(size).map_err(fail("set the size of"))?;
        }
        Ok(Self {
            path,
            file,
            updates,
            zeros: 0..0,
            written: Written::default(),
        })
    }

    fn error(&self, source: io::Error) -> WriteMemoryError {
        WriteMemoryError {
            what: "write",
            path: self.path.into(),
            source,
        }
    }

    /// Writes pages, and leaves holes for those that are zero.
    fn sparse(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriteMemoryError> {
        let (pages, _) = bytes.as_chunks::<PAGE_SIZE>();
        for (zero, run) in runs(pages.len(), |page| pages[page] == ZEROS) {
            let place = offset + (run.start * PAGE_SIZE) as u64;
            if zero {
                self.zeros(place, run.len() * PAGE_SIZE)?;
            } else {
                self.data(place, &bytes[run.start * PAGE_SIZE..run.end * PAGE_SIZE])?;
            }
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriteMemoryError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|source| self.error(source))?;
        self.written.bytes += bytes.len() as u64;
        Ok(())
    }

    fn zeros(&mut self, offset: u64, length: usize) -> Result<(), WriteMemoryError> {
        if !self.updates {
            return Ok(());
        }
        if self.zeros.end != offset {
            self.punch()?;
            self.zeros.start = offset;
        }
        self.zeros.end = offset + length as u64;
        Ok(())
    }

    fn punch(&mut self) -> Result<(), WriteMemoryError> {
        let zeros = std::mem::take(&mut self.zeros);
        if zeros.is_empty() {
            return Ok(());
        }
        let length = zeros.end - zeros.start;
        let punched = fallocate(
            &self.file,
            FallocateMode::PunchHole,
            true,
            zeros.start,
            length,
        );
        if punched.is_ok() {
            return Ok(());
        }
        // A file system without holes.
        for offset in zeros.step_by(PAGE_SIZE) {
            self.file
                .write_all_at(&ZEROS, offset)
                .map_err(|source| self.error(source))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Written, WriteMemoryError> {
        self.punch()?;
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests;
