//! Feeds the kernel's random number generator, ioctls of random(4).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// `_IOW('R', 0x03, int[2])`
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Most that one request may bring.
pub const MAX_BYTES: usize = 512;

/// `struct rand_pool_info` with room for [`MAX_BYTES`].
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; MAX_BYTES],
}

/// Credits `bytes` as full entropy and makes the generator use it at once.
///
/// # Errors
/// Whatever the kernel says; `EPERM` without CAP_SYS_ADMIN.
pub fn mix_in(bytes: &[u8]) -> io::Result<()> {
    let random = File::options().write(true).open("/dev/urandom")?;
    for part in bytes.chunks(MAX_BYTES) {
        let size = libc::c_int::try_from(part.len()).map_err(io::Error::other)?;
        let mut info = PoolInfo {
            entropy_count: size * 8,
            buf_size: size,
            buf: [0; MAX_BYTES],
        };
        info.buf[..part.len()].copy_from_slice(part);
        // SAFETY: the kernel reads `buf_size` bytes of `buf`, which has at least as
        // many, and `info` outlives the call.
        let rc = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: takes no argument, and `random` keeps the descriptor open.
    let rc = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
