//! Giving pages of guest memory back to the host: they are zero from then on.
//!
//! ```text
//! behind memory         given back by               zero, but was not in the snapshot
//! nothing, or a pager   MADV_DONTNEED, of which     pages that are resident
//!                       the pager is told
//! a file, a hole in it  MADV_DONTNEED               none: the hole shows again
//! a file, data in it    fresh memory in its place   pages with data
//! ```
//!
//! Pages of the last column are marked as changed, since nobody has written them and KVM's
//! log does not know; those that were written since are in that log anyway. A page that a
//! pager never brought is not marked, though it may have been something before: the guest
//! takes what it has given up for uninitialised, so that old contents do no harm, and a guest
//! with much free memory would have all of it written down as zeros.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{GuestMemory, PAGE_SIZE, host_length};
use crate::sys::memory::{HUGE_PAGE_SIZE, release, replace, resident};
use crate::sys::sparse;

/// How much of a file's mapping may be replaced, in blocks of 2 MiB: each may be a mapping of
/// its own, and a process has 65,530 of them.
const REPLACED_MAX: usize = 16_384;

/// Gives pages back.
#[derive(Debug, Default)]
pub struct Discarder {
    /// The memory file that is mapped, if one is.
    behind: Option<File>,
    replaced: usize,
}

impl Discarder {
    /// For memory behind which lies this file, or else nothing or a page-fault server.
    pub const fn new(behind: Option<File>) -> Self {
        Self {
            behind,
            replaced: 0,
        }
    }

    /// Makes whole pages zero without keeping room for them.
    ///
    /// # Errors
    /// If the range is not whole pages of one region, or cannot be given back: it is too
    /// small or there are too many for new mappings, or the kernel refuses. What the pages
    /// hold then is undefined.
    pub fn discard(
        &mut self,
        memory: &GuestMemory,
        start: GuestAddress,
        length: usize,
    ) -> io::Result<()> {
        let Some(file) = &self.behind else {
            let pages = resident(memory, start, length)?;
            for (page, _) in pages.iter().enumerate().filter(|(_, resident)| **resident) {
                mark_changed(memory, start, page * PAGE_SIZE..(page + 1) * PAGE_SIZE)?;
            }
            return release(memory, start, length);
        };
        let data = data_in(file, offset_in_file(memory, start)?, length)?;
        if data.is_empty() {
            return release(memory, start, length);
        }
        let block = HUGE_PAGE_SIZE as u64;
        let whole = start.0.is_multiple_of(block) && length.is_multiple_of(HUGE_PAGE_SIZE);
        let blocks = length / HUGE_PAGE_SIZE;
        if !whole || self.replaced + blocks > REPLACED_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for range in data {
            mark_changed(memory, start, range)?;
        }
        self.replaced += blocks;
        replace(memory, start, length)
    }
}

/// Marks part of what starts at `start` as changed.
fn mark_changed(memory: &GuestMemory, start: GuestAddress, part: Range<usize>) -> io::Result<()> {
    let slice = GuestMemoryBackend::get_slice(memory, start, part.end);
    let slice = slice.map_err(io::Error::other)?;
    slice.bitmap().mark_dirty(part.start, part.len());
    Ok(())
}

/// Where a file has data, as offsets from `from`, in whole pages.
fn data_in(file: &File, from: u64, length: usize) -> io::Result<Vec<Range<usize>>> {
    let (mut at, end) = (from, from + length as u64);
    let mut found = Vec::new();
    while at < end {
        let Some(start) = sparse::data(file.as_fd(), at)?.filter(|start| *start < end) else {
            break;
        };
        at = sparse::hole(file.as_fd(), start)?.min(end);
        let [start, stop] = [start, at].map(|offset| host_length(offset - from));
        found.push(start / PAGE_SIZE * PAGE_SIZE..stop.next_multiple_of(PAGE_SIZE));
    }
    Ok(found)
}

/// Where an address of the guest lies in its memory file, in which regions follow each other.
fn offset_in_file(memory: &GuestMemory, address: GuestAddress) -> io::Result<u64> {
    let mut offset = 0;
    for region in memory.iter() {
        match region.to_region_addr(address) {
            Some(within) => return Ok(offset + within.0),
            None => offset += region.len(),
        }
    }
    Err(io::ErrorKind::InvalidInput.into())
}
