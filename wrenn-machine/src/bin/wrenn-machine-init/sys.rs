//! Ioctls that no crate in use wraps: those of network interfaces (netdevice(7)) and those of
//! the real-time clock (rtc(4)).

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

#[allow(
    clippy::cast_possible_truncation,
    reason = "the value is 1, which the kernel's structure has as a short integer"
)]
const UP: libc::c_short = libc::IFF_UP as libc::c_short;
#[allow(
    clippy::cast_possible_truncation,
    reason = "the value is 2, which the kernel's structure has as a short integer"
)]
const IPV4: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;

mod ioctl {
    // linux/rtc.h: RTC_UIE_ON and RTC_UIE_OFF.
    nix::ioctl_none!(update_interrupt_on, b'p', 0x03);
    nix::ioctl_none!(update_interrupt_off, b'p', 0x04);
}

/// Asks a real-time clock for an interrupt each second.
pub(crate) fn enable_update_interrupt(clock: &File) -> io::Result<()> {
    // SAFETY: RTC_UIE_ON takes no argument, and the borrow keeps the descriptor open.
    unsafe { ioctl::update_interrupt_on(clock.as_raw_fd()) }?;
    Ok(())
}

/// Ends what [`enable_update_interrupt`] began.
pub(crate) fn disable_update_interrupt(clock: &File) -> io::Result<()> {
    // SAFETY: RTC_UIE_OFF takes no argument, and the borrow keeps the descriptor open.
    unsafe { ioctl::update_interrupt_off(clock.as_raw_fd()) }?;
    Ok(())
}

/// Sets the interface's flags so that it is up.
pub(crate) fn bring_up(interface: &str) -> io::Result<()> {
    let mut request = request_for(interface)?;
    ioctl(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | UP;
    ioctl(libc::SIOCSIFFLAGS, &mut request)
}

/// Sets the interface's IPv4 address and network mask.
pub(crate) fn set_address(interface: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    for (number, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        let mut request = request_for(interface)?;
        request.ifr_ifru.ifru_addr = socket_address(value);
        ioctl(number, &mut request)?;
    }
    Ok(())
}

fn request_for(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: every member of ifreq is integers or arrays of them, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, since the name must end with one.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    Ok(request)
}

/// `struct sockaddr_in` as the bytes of a `struct sockaddr`: family, port, address.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (place, byte) in data[2..].iter_mut().zip(address.octets()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    libc::sockaddr {
        sa_family: IPV4,
        sa_data: data,
    }
}

fn ioctl(number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let pointer: *mut libc::ifreq = request;
    // SAFETY: these ioctls read and write one ifreq, which `request` borrows for the call,
    // and `socket` keeps the descriptor open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), number, pointer) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
