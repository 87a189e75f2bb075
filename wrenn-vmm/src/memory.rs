//! Guest memory: how it is laid out around the device hole, and how it is mapped.

pub mod discard;

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::layout;
use crate::sys::memory::{HUGE_PAGE_SIZE, Spacer};

/// The guest's memory. The bitmap exists only if dirty pages are tracked; it records
/// what the VMM itself writes, while KVM records what the guest writes.
pub type GuestMemory = GuestMemoryMmap<Option<AtomicBitmap>>;

/// Size of a page in guest and host.
pub const PAGE_SIZE: usize = 4096;

/// How many gaps that are not aligned are passed over before memory is put into one.
const GAPS_MAX: usize = 16;

/// What backs guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Ordinary pages.
    #[default]
    None,
    /// Ordinary pages that the kernel may merge into huge ones.
    Transparent,
    /// Pages of 2 MiB from the host's pool.
    #[serde(rename = "2M")]
    Size2Mib,
}

impl HugePages {
    /// The unit, in MiB, in which memory can be given with this backing.
    pub const fn granularity_mib(self) -> u64 {
        match self {
            Self::None => 1,
            Self::Transparent | Self::Size2Mib => 2,
        }
    }
}

/// Guest memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size cannot be addressed.
    #[error("{size_mib} MiB of guest memory cannot be addressed")]
    TooLarge {
        /// Size asked for.
        size_mib: u64,
    },
    /// The mapping itself failed.
    #[error("cannot map {size} bytes of guest memory")]
    Map {
        /// Size of the region in bytes.
        size: usize,
        /// Why.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// A region could not be placed.
    #[error("guest memory region at {start:#x} does not fit the address space")]
    Place {
        /// Where it was to lie.
        start: u64,
    },
    /// Regions overlap or are not sorted.
    #[error("guest memory regions do not form an address space")]
    Arrange(#[source] vm_memory::GuestRegionCollectionError),
    /// The kernel refused the advice.
    #[error("cannot advise huge pages for guest memory")]
    Advise(#[source] std::io::Error),
}

/// Converts a guest size or offset for use as a host length. Both are 64 bits wide on
/// the one architecture that this crate supports.
#[expect(
    clippy::cast_possible_truncation,
    reason = "usize has 64 bits here, asserted below"
)]
pub const fn host_length(value: u64) -> usize {
    const { assert!(usize::BITS == 64) };
    value as usize
}

/// The RAM regions of a guest with `size_mib` MiB: one below the device hole and, past
/// 3 GiB, one above it.
pub fn regions(size_mib: u64) -> Vec<(u64, u64)> {
    let size = size_mib << 20;
    if size <= layout::DEVICE_HOLE_START {
        vec![(0, size)]
    } else {
        vec![
            (0, layout::DEVICE_HOLE_START),
            (layout::DEVICE_HOLE_END, size - layout::DEVICE_HOLE_START),
        ]
    }
}

/// Maps anonymous memory for a guest. Pages are taken from the host as they are touched.
///
/// # Errors
/// If the size is absurd or the host refuses the mapping.
pub fn allocate(
    size_mib: u64,
    backing: HugePages,
    track_dirty_pages: bool,
) -> Result<GuestMemory, MemoryError> {
    // x86 has at most 52 physical address bits; the check also keeps the shift below honest.
    if size_mib >= 1 << 31 {
        return Err(MemoryError::TooLarge { size_mib });
    }
    let regions = regions(size_mib)
        .into_iter()
        .map(|(start, size)| map_region(start, host_length(size), backing, track_dirty_pages))
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemory::from_regions(regions).map_err(MemoryError::Arrange)
}

fn map_region(
    start: u64,
    size: usize,
    backing: HugePages,
    track_dirty_pages: bool,
) -> Result<GuestRegionMmap<Option<AtomicBitmap>>, MemoryError> {
    const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_SIZE).expect("a page has a size");
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    if backing == HugePages::Size2Mib {
        flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    }
    // Gaps in the address space that were found in place of the aligned one; they are taken
    // until that is found.
    let mut gaps = Vec::new();
    let mapping = loop {
        let bitmap = track_dirty_pages.then(|| AtomicBitmap::new(size, PAGE));
        let spacer = Spacer::before(size);
        let mapping = MmapRegionBuilder::new_with_bitmap(size, bitmap)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .build();
        drop(spacer);
        let is_aligned =
            |mapping: &MmapRegion<_>| (mapping.as_ptr() as usize).is_multiple_of(HUGE_PAGE_SIZE);
        match mapping {
            Ok(mapping) if is_aligned(&mapping) || gaps.len() == GAPS_MAX => break mapping,
            Ok(mapping) => gaps.push(mapping),
            // One that is not aligned is better than none.
            Err(source) => break gaps.pop().ok_or(MemoryError::Map { size, source })?,
        }
    };
    drop(gaps);
    if backing == HugePages::Transparent {
        crate::sys::memory::advise_huge_pages(&mapping).map_err(MemoryError::Advise)?;
    }
    GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(MemoryError::Place { start })
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

    use super::*;

    #[test]
    fn small_guest_is_one_region() {
        assert_eq!(regions(128), [(0, 128 << 20)]);
        assert_eq!(regions(3072), [(0, 3 << 30)]);
    }

    #[test]
    fn memory_past_three_gib_continues_above_the_hole() {
        assert_eq!(regions(3073), [(0, 3 << 30), (1 << 32, 1 << 20)]);
        let all: u64 = regions(16 << 10).iter().map(|(_, size)| size).sum();
        assert_eq!(all, 16 << 30);
    }

    #[test]
    fn mapping_matches_the_layout() {
        let memory = allocate(4096, HugePages::None, true).unwrap();
        let found: Vec<_> = memory.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(found, regions(4096));
        assert!(memory.address_in_range(GuestAddress(layout::DEVICE_HOLE_START - 1)));
        assert!(!memory.address_in_range(GuestAddress(layout::DEVICE_HOLE_START)));
        assert!(memory.address_in_range(GuestAddress(layout::DEVICE_HOLE_END)));
    }

    #[test]
    fn memory_is_aligned_for_huge_pages() {
        for size_mib in [1, 2, 127, 128, 3073] {
            let memory = allocate(size_mib, HugePages::None, false).unwrap();
            for region in memory.iter() {
                let host = region.get_host_address(MemoryRegionAddress(0)).unwrap() as usize;
                assert!(
                    host.is_multiple_of(HUGE_PAGE_SIZE),
                    "{size_mib} MiB: {host:#x}"
                );
            }
        }
    }

    #[test]
    fn absurd_size_is_refused() {
        assert!(matches!(
            allocate(u64::MAX, HugePages::None, false),
            Err(MemoryError::TooLarge { .. })
        ));
    }
}
