//! Giving pages of guest memory back to the host: they are zero from then on.
//!
//! ```text
//! behind memory         given back by               marked as changed
//! nothing, or a pager   MADV_DONTNEED, of which     pages that are resident
//!                       the pager is told
//! a file, a hole in it  MADV_DONTNEED               none: the hole shows again
//! a file, data in it    fresh memory in its place,  pages with data
//!                       behind which is nothing
//! ```
//!
//! What is given back differs from the snapshot before, though nobody has written it, so that
//! KVM's log does not know. What was written since that snapshot is in the log anyway. Not all
//! of the rest is marked: neither what a pager never brought, nor what went from a hole of the
//! file into a snapshot of the machine as it ran. There the next diff keeps what was before. The
//! guest takes what it has given up for uninitialised, so that this costs room only; marking
//! all would have a guest with much free memory written down as zeros.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{GuestMemory, PAGE_SIZE, host_length};
use crate::sys::memory::{HUGE_PAGE_SIZE, release, replace, resident, whole_pages};
use crate::sys::sparse;

/// How much of a file's mapping may be replaced, in blocks of 2 MiB: each may be a mapping of
/// its own, and a process has 65,530 of them.
const REPLACED_MAX: usize = 16_384;
const BLOCK: u64 = HUGE_PAGE_SIZE as u64;

/// Gives pages back.
#[derive(Debug, Default)]
pub struct Discarder {
    /// The memory file that is mapped, if one is.
    behind: Option<File>,
    /// Blocks of 2 MiB that it does not lie behind any more, by their number.
    replaced: BTreeSet<u64>,
}

impl Discarder {
    /// For memory behind which this file lies.
    pub const fn of_file(file: File) -> Self {
        Self {
            behind: Some(file),
            replaced: BTreeSet::new(),
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
        let pages = whole_pages(memory, start, length)?;
        let blocks = start.0 / BLOCK..(start.0 + length as u64).div_ceil(BLOCK);
        let file = self.behind.as_ref();
        let file = file.filter(|_| !blocks.clone().all(|block| self.replaced.contains(&block)));
        let Some(file) = file else {
            let resident = resident(memory, start, length)?;
            for (page, _) in resident.iter().enumerate().filter(|(_, is)| **is) {
                pages.bitmap().mark_dirty(page * PAGE_SIZE, PAGE_SIZE);
            }
            return release(memory, start, length);
        };
        let data = data_in(file, offset_in_file(memory, start)?, length)?;
        if data.is_empty() {
            return release(memory, start, length);
        }
        let whole = start.0.is_multiple_of(BLOCK) && (length as u64).is_multiple_of(BLOCK);
        if !whole || self.replaced.len() + length / HUGE_PAGE_SIZE > REPLACED_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for range in data {
            pages.bitmap().mark_dirty(range.start, range.len());
        }
        if let Err(error) = replace(memory, start, length) {
            // The old pages may be gone and no new ones there. A guest must not find that out.
            log::error!("failed to replace guest memory: {error}");
            std::process::abort();
        }
        self.replaced.extend(blocks);
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::*;
    use crate::memory::{HugePages, allocate};
    use crate::snapshot::memory_file::{bitmap_of, forget_changes};
    use crate::sys::memory::map_file;

    /// A guest frees the same memory again and again. It has one new mapping then, and each
    /// time what it had written is zero and counts as changed.
    #[test]
    fn a_block_is_replaced_once() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * BLOCK).unwrap();
        file.write_all_at(&[7; PAGE_SIZE], BLOCK).unwrap();
        let memory = allocate(4, HugePages::None, true).unwrap();
        map_file(&memory, GuestAddress(0), 2 * HUGE_PAGE_SIZE, &file, 0).unwrap();
        let mut discarder = Discarder::of_file(file);
        for round in 0..3 {
            let written = GuestAddress(BLOCK + round * 8 * PAGE_SIZE as u64);
            memory.write_obj(9_u8, written).unwrap();
            // As after a snapshot.
            forget_changes(&memory);
            discarder
                .discard(&memory, GuestAddress(BLOCK), HUGE_PAGE_SIZE)
                .unwrap();
            assert_eq!(discarder.replaced.len(), 1);
            let byte: u8 = memory.read_obj(written).unwrap();
            assert_eq!(byte, 0);
            let bitmap = bitmap_of(memory.iter().next().unwrap()).unwrap();
            assert!(
                bitmap.is_bit_set(host_length(written.0) / PAGE_SIZE),
                "{round}"
            );
        }
    }
}
