//! Guest memory as the kernel sees it.

use std::io;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::memory::GuestMemory;

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
