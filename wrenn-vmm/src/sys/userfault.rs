//! Memory whose pages another process provides (Linux
//! `Documentation/admin-guide/mm/userfaultfd.rst`).
//!
//! Most faults on guest memory happen inside KVM, so in the kernel, and a descriptor that
//! handles those needs more than a process without privileges has: write access to
//! `/dev/userfaultfd` (Linux 6.1), or `CAP_SYS_PTRACE` or `vm.unprivileged_userfaultfd`
//! for the system call. A jail is best given the device node. A descriptor for faults of
//! user mode alone (`UFFD_USER_MODE_ONLY`) is of no use here: KVM would fail.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_long, c_ulong};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::memory::GuestMemory;

const DEVICE: &str = "/dev/userfaultfd";

// Linux include/uapi/linux/userfaultfd.h.
const USERFAULTFD_IOC_NEW: c_ulong = 0xaa00;
const UFFDIO_API: c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: c_ulong = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

#[repr(C)]
struct ApiRequest {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RegisterRequest {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// A descriptor that reports faults on missing pages.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// Makes a descriptor that handles faults of the kernel too.
    ///
    /// Removals of pages are reported as well, as Firecracker's page-fault servers expect:
    /// what a balloon discards is zero from then on.
    ///
    /// # Errors
    /// If this process may not have one, or the kernel has none.
    pub fn new() -> io::Result<Self> {
        let descriptor = from_device().or_else(|_| from_system_call())?;
        let mut request = ApiRequest {
            api: UFFD_API,
            features: UFFD_FEATURE_EVENT_REMOVE,
            ioctls: 0,
        };
        // SAFETY: the argument points to a whole `uffdio_api` that lives during the call.
        let code = unsafe { libc::ioctl(descriptor.as_raw_fd(), UFFDIO_API, &raw mut request) };
        check(code)?;
        Ok(Self(descriptor))
    }

    /// Has faults on all of guest memory reported.
    ///
    /// # Errors
    /// If the kernel cannot do so for this kind of memory.
    pub fn register(&self, memory: &GuestMemory) -> io::Result<()> {
        for region in memory.iter() {
            let start = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(io::Error::other)?;
            let mut request = RegisterRequest {
                start: start as u64,
                length: region.len(),
                mode: UFFDIO_REGISTER_MODE_MISSING,
                ioctls: 0,
            };
            // SAFETY: the argument points to a whole `uffdio_register` that lives during
            // the call. The range is guest memory, so that the only effect is that an
            // access to it may wait for whoever holds the descriptor.
            let code =
                unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut request) };
            check(code)?;
        }
        Ok(())
    }
}

impl AsRawFd for Userfault {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

const FLAGS: c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

fn from_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(DEVICE)?;
    // SAFETY: the argument is a number, not a pointer.
    let descriptor = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, FLAGS) };
    own(c_long::from(descriptor))
}

fn from_system_call() -> io::Result<OwnedFd> {
    // SAFETY: the argument is a number, not a pointer.
    own(unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) })
}

fn own(descriptor: c_long) -> io::Result<OwnedFd> {
    let descriptor = RawFd::try_from(descriptor)
        .ok()
        .filter(|descriptor| *descriptor >= 0)
        .ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn check(code: c_int) -> io::Result<()> {
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
