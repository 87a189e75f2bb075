//! What a guest of our own making needs of the kernel.

#![allow(unsafe_code, reason = "ioctl has no safe wrapper for TUN")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use tokio::io::unix::AsyncFd;

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
}

/// Opens the TAP of this name in the calling thread's namespace, as a VMM does.
pub(crate) fn open_tap(name: &str) -> File {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .expect("these tests need /dev/net/tun");
    // SAFETY: all-zero bytes are a valid ifreq: characters, numbers and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap();
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    unsafe { ioctl::set_interface(device.as_raw_fd(), &raw const request) }.unwrap();
    device
}

/// Has the runtime watch a TAP.
pub(crate) fn watched(tap: File) -> AsyncFd<File> {
    // SAFETY: a File always gives the same descriptor and keeps it open while it lives,
    // and the AsyncFd owns it from here on.
    unsafe { AsyncFd::register(tap) }.unwrap()
}
