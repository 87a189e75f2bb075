//! Guest memory as the kernel sees it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::bitmap::{AtomicBitmap, BS};
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice,
};

use crate::memory::{GuestMemory, PAGE_SIZE};

/// Size of a huge page.
pub const HUGE_PAGE_SIZE: usize = 2 << 20;

/// Lets the kernel back a mapping with huge pages where it can.
///
/// # Errors
/// If the kernel has no transparent huge pages.
pub fn advise_huge_pages(mapping: &MmapRegion<Option<AtomicBitmap>>) -> io::Result<()> {
    // SAFETY: pointer and length describe one mapping that `mapping` keeps alive during
    // the call, and the advice does not change its contents.
    let code =
        unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_HUGEPAGE) };
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes up address space so that the next mapping of some length starts at a multiple of
/// 2 MiB. KVM gives a guest huge pages only where its addresses and the host's are
/// multiples of their size together, and older kernels put mappings anywhere.
///
/// Nobody else's mappings are touched: at worst, the next mapping starts elsewhere.
#[derive(Debug)]
pub struct Spacer {
    start: *mut libc::c_void,
    length: usize,
}

impl Spacer {
    /// A spacer for a mapping of `length` bytes, to be dropped once that is there; `None`
    /// if there is no need for one, or no room.
    pub fn before(length: usize) -> Option<Self> {
        let room = length.checked_add(HUGE_PAGE_SIZE)?;
        // Where the kernel would put it, with room to spare. Mappings grow downwards, so
        // that the next one ends where this one does or at what lies there then.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let probe = MmapRegion::<()>::build(None, room, libc::PROT_NONE, flags).ok()?;
        let end = probe.as_ptr() as usize + room;
        drop(probe);
        let wanted_end = (end - length) / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE + length;
        let spare = end - wanted_end;
        if spare == 0 {
            return None;
        }
        // SAFETY: the mapping is inaccessible and anonymous, and `MAP_FIXED_NOREPLACE`
        // makes the call fail rather than touch what somebody else has mapped there.
        let start = unsafe {
            libc::mmap(
                std::ptr::without_provenance_mut(wanted_end),
                spare,
                libc::PROT_NONE,
                flags | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        Some(Self {
            start,
            length: spare,
        })
    }
}

impl Drop for Spacer {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `before` has made; nothing refers to it.
        if unsafe { libc::munmap(self.start, self.length) } != 0 {
            log::debug!("spacer: {}", io::Error::last_os_error());
        }
    }
}

/// Gives the guest its memory, one slot a region.
///
/// The caller keeps `memory` alive for as long as vCPUs of `vm` run: the machine owns
/// both and stops its vCPUs before it drops either.
///
/// # Errors
/// If KVM refuses a region.
pub fn register(vm: &VmFd, memory: &GuestMemory, log_dirty: bool) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|_| kvm_ioctls::Error::new(libc::EFAULT))?;
        let description = kvm_userspace_memory_region {
            slot,
            flags: if log_dirty {
                KVM_MEM_LOG_DIRTY_PAGES
            } else {
                0
            },
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the region is a live mapping of exactly `memory_size` bytes at
        // `userspace_addr`, regions do not overlap, and it outlives the vCPUs (above).
        unsafe { vm.set_user_memory_region(description) }?;
    }
    Ok(())
}

/// Puts part of a file into guest memory as a private mapping: its pages come from the
/// host's page cache when the guest touches them, and are copied when it writes them.
///
/// # Errors
/// If the range is not whole pages of one region or of the file, or the kernel refuses.
pub fn map_file(
    memory: &GuestMemory,
    start: GuestAddress,
    length: usize,
    file: &File,
    offset: u64,
) -> io::Result<()> {
    let page = PAGE_SIZE as u64;
    let whole = start.0.is_multiple_of(page)
        && length.is_multiple_of(PAGE_SIZE)
        && offset.is_multiple_of(page);
    // A page beyond the end of the file would be a SIGBUS for whoever touches it.
    let in_file = offset
        .checked_add(length as u64)
        .is_some_and(|end| file.metadata().is_ok_and(|metadata| end <= metadata.len()));
    let slice = GuestMemoryBackend::get_slice(memory, start, length);
    let (true, true, Ok(slice), Ok(offset)) = (whole, in_file, slice, i64::try_from(offset)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let place = slice.ptr_guard_mut().as_ptr();
    // SAFETY: `place` and `length` lie within one mapping that `memory` owns, as whole
    // pages, so that only guest memory is replaced. It stays readable and writable, is
    // private, and goes away with the rest when `memory` unmaps its region. Nothing but
    // volatile accesses refers to guest memory.
    let mapped = unsafe {
        libc::mmap(
            place.cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A range that is whole pages of one region.
///
/// # Errors
/// If it is not.
pub fn whole_pages(
    memory: &GuestMemory,
    start: GuestAddress,
    length: usize,
) -> io::Result<VolatileSlice<'_, BS<'_, Option<AtomicBitmap>>>> {
    let whole = start.0.is_multiple_of(PAGE_SIZE as u64) && length.is_multiple_of(PAGE_SIZE);
    match GuestMemoryBackend::get_slice(memory, start, length) {
        Ok(slice) if whole && length > 0 => Ok(slice),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Which of some pages are in memory, of those that no file is mapped to.
///
/// # Errors
/// If the range is not whole pages of one region, or the kernel refuses.
pub fn resident(memory: &GuestMemory, start: GuestAddress, length: usize) -> io::Result<Vec<bool>> {
    let slice = whole_pages(memory, start, length)?;
    let mut answer = vec![0_u8; length / PAGE_SIZE];
    let place = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the range is one mapping that `memory` owns, and `answer` has a byte for each
    // of its pages.
    if unsafe { libc::mincore(place.cast(), length, answer.as_mut_ptr()) } == 0 {
        Ok(answer.iter().map(|page| page & 1 == 1).collect())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets go of the pages of a range: what lies behind them shows again, which is zero where
/// nothing does. A page-fault server is told, and waited for until it knows.
///
/// # Errors
/// If the range is not whole pages of one region, or the kernel refuses.
pub fn release(memory: &GuestMemory, start: GuestAddress, length: usize) -> io::Result<()> {
    let slice = whole_pages(memory, start, length)?;
    let place = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the range is whole pages of one mapping that `memory` owns. Their contents
    // change, and nothing but volatile accesses refers to guest memory.
    if unsafe { libc::madvise(place.cast(), length, libc::MADV_DONTNEED) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts fresh memory into the place of a range, which reads as zero then.
///
/// # Errors
/// If the range is not whole pages of one region, or the kernel refuses. One that is short of
/// memory may have taken the old pages away: the guest ends when it touches them.
pub fn replace(memory: &GuestMemory, start: GuestAddress, length: usize) -> io::Result<()> {
    let slice = whole_pages(memory, start, length)?;
    let place = slice.ptr_guard_mut().as_ptr();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range is whole pages of one mapping that `memory` owns, so that only guest
    // memory is replaced. It stays readable and writable, and goes away with the rest when
    // `memory` unmaps its region. Nothing but volatile accesses refers to guest memory.
    let mapped = unsafe { libc::mmap(place.cast(), length, access, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
