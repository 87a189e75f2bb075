//! A TAP interface of the host.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_uint, c_ulong};

// Linux include/uapi/linux/if_tun.h.
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;

/// Ethernet frames, each behind a virtio header and nothing else.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the flags are 16 bits wide by definition"
)]
const FLAGS: i16 = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;

/// Checksums left to the receiver.
pub const OFFLOAD_CHECKSUM: c_uint = 0x01;
/// Large TCP segments over IPv4.
pub const OFFLOAD_TSO4: c_uint = 0x02;
/// Large TCP segments over IPv6.
pub const OFFLOAD_TSO6: c_uint = 0x04;
/// Large TCP segments with congestion marks.
pub const OFFLOAD_TSO_ECN: c_uint = 0x08;

/// An open TAP interface whose packets carry the 12-byte virtio header.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    /// Attaches to the interface `name`.
    ///
    /// # Errors
    /// If there is no such interface, it is in use, or its kind is another.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: FLAGS },
        };
        // The last byte stays zero.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // TUNSETIFF would make an interface that nobody has set up.
        let c_name = CString::new(name)?;
        // SAFETY: the pointer is to a string that ends with zero and lives during the call.
        if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
            return Err(io::Error::last_os_error());
        }
        for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *slot = byte.cast_signed();
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        // SAFETY: the request is a whole `ifreq` that lives during the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        let size: c_int = 12;
        // SAFETY: the argument is a pointer to an `int` that lives during the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })?;
        Ok(Self { file })
    }

    /// A datagram socket in place of an interface.
    #[cfg(test)]
    pub(crate) fn from_socket(socket: std::os::unix::net::UnixDatagram) -> Self {
        socket.set_nonblocking(true).unwrap();
        let descriptor = std::os::fd::OwnedFd::from(socket);
        Self {
            file: descriptor.into(),
        }
    }

    /// Another handle on the same interface.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
        })
    }

    /// Says which unfinished packets the reader can take.
    ///
    /// # Errors
    /// If the kernel does not know one of them.
    pub fn set_offload(&self, flags: c_uint) -> io::Result<()> {
        // SAFETY: the argument is a number, not a pointer.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, c_ulong::from(flags)) })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn check(code: c_int) -> io::Result<()> {
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
