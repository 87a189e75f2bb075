//! Ioctls that no crate in use wraps: those of network interfaces and routes (netdevice(7),
//! `linux/route.h`) and those of the real-time clock (rtc(4)).

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
    change_interface(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | UP;
    change_interface(libc::SIOCSIFFLAGS, &mut request)
}

/// Sets the interface's IPv4 address and network mask.
pub(crate) fn set_address(interface: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    for (number, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        let mut request = request_for(interface)?;
        request.ifr_ifru.ifru_addr = socket_address(value);
        change_interface(number, &mut request)?;
    }
    Ok(())
}

/// `struct rtentry` of linux/route.h, which the C library's crate does not have.
#[repr(C)]
struct RouteEntry {
    pad1: libc::c_ulong,
    destination: libc::sockaddr,
    gateway: libc::sockaddr,
    mask: libc::sockaddr,
    flags: libc::c_ushort,
    pad2: libc::c_short,
    pad3: libc::c_ulong,
    pad4: usize,
    metric: libc::c_short,
    /// A null pointer: the kernel finds the interface by the gateway.
    device: usize,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    initial_round_trip: libc::c_ushort,
}

/// Routes all that has no route of its own to `gateway`.
pub(crate) fn add_default_route(gateway: Ipv4Addr) -> io::Result<()> {
    let everywhere = socket_address(Ipv4Addr::UNSPECIFIED);
    let route = RouteEntry {
        pad1: 0,
        destination: everywhere,
        gateway: socket_address(gateway),
        mask: everywhere,
        flags: libc::RTF_UP | libc::RTF_GATEWAY,
        pad2: 0,
        pad3: 0,
        pad4: 0,
        metric: 0,
        device: 0,
        mtu: 0,
        window: 0,
        initial_round_trip: 0,
    };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: SIOCADDRT reads one rtentry, which `route` is and lives for the call; its device
    // is a null pointer, which the kernel does not follow. `socket` keeps the descriptor open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
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

fn change_interface(number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// As the kernel's header lays them out on x86-64.
    #[test]
    fn route_entry_has_the_kernels_layout() {
        assert_eq!(offset_of!(RouteEntry, destination), 8);
        assert_eq!(offset_of!(RouteEntry, gateway), 24);
        assert_eq!(offset_of!(RouteEntry, mask), 40);
        assert_eq!(offset_of!(RouteEntry, flags), 56);
        assert_eq!(offset_of!(RouteEntry, metric), 80);
        assert_eq!(offset_of!(RouteEntry, device), 88);
        assert_eq!(size_of::<RouteEntry>(), 120);
    }
}
