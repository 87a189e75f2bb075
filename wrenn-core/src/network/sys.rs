//! The ioctls of `linux/if_tun.h`.

#![allow(unsafe_code, reason = "ioctl has no safe wrapper for TUN")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// The device through which TAPs are made.
pub(super) const TUN_DEVICE: &str = "/dev/net/tun";

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(set_persistent, libc::TUNSETPERSIST);
    nix::ioctl_write_int_bad!(set_owner, libc::TUNSETOWNER);
    nix::ioctl_write_int_bad!(set_group, libc::TUNSETGROUP);
}

/// The user and group that may open a TAP without being root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TapOwner {
    pub(super) user: u32,
    pub(super) group: u32,
}

/// Opens the TAP of this name in the thread's network namespace, makes it if it isn't
/// there, and leaves it behind when it is closed.
///
/// It carries whole Ethernet frames behind a virtio-net header, has one queue, and can be
/// opened by one process at a time, as VMMs expect.
pub(super) fn keep_tap(name: &str, owner: Option<TapOwner>) -> io::Result<()> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(TUN_DEVICE)?;
    // SAFETY: all-zero bytes are a valid ifreq: an array of characters and a union of
    // plain numbers and a null pointer that TUNSETIFF doesn't look at.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives and is exclusively
    // borrowed until the call returns; `device` keeps the descriptor open.
    unsafe { ioctl::set_interface(device.as_raw_fd(), &raw const request) }?;
    if let Some(TapOwner { user, group }) = owner {
        // SAFETY: TUNSETOWNER takes a number, no pointer; `device` is open.
        unsafe { ioctl::set_owner(device.as_raw_fd(), user.cast_signed()) }?;
        // SAFETY: TUNSETGROUP takes a number, no pointer; `device` is open.
        unsafe { ioctl::set_group(device.as_raw_fd(), group.cast_signed()) }?;
    }
    // SAFETY: TUNSETPERSIST takes a number, no pointer; `device` is open.
    unsafe { ioctl::set_persistent(device.as_raw_fd(), 1) }?;
    Ok(())
}
