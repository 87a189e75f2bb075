//! Guest memory as the kernel sees it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::memory::{GuestMemory, PAGE_SIZE};

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
