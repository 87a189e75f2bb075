//! The ioctls of `linux/dm-ioctl.h` and `linux/loop.h`.

#![allow(unsafe_code, reason = "these ioctls have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// Length of `struct dm_ioctl`, with which every message begins.
pub(super) const DM_HEADER_LEN: usize = 312;
/// Where `data_size` stands in it.
const DM_DATA_SIZE_AT: usize = 12;
const DM_IOCTL: u8 = 0xfd;

/// `LO_FLAGS_READ_ONLY`.
pub(super) const LOOP_READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`: the device detaches when its last user closes it.
pub(super) const LOOP_AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO`: past the page cache, where the file system can.
pub(super) const LOOP_DIRECT_IO: u32 = 16;

/// Commands of the device mapper, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum DmCommand {
    ListDevices = 2,
    Create = 3,
    Remove = 4,
    /// Suspends or, without the flag for it, resumes.
    Suspend = 6,
    Status = 7,
    LoadTable = 9,
    TableStatus = 12,
    TargetVersion = 17,
}

/// `struct loop_info64`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct LoopInfo {
    /// Device of the file system that holds the backing file, as `stat` gives it.
    pub(super) device: u64,
    /// Inode of the backing file.
    pub(super) inode: u64,
    rdevice: u64,
    pub(super) offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(super) flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    descriptor: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

impl LoopInfo {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

mod ioctl {
    use super::{LoopConfig, LoopInfo};

    nix::ioctl_none_bad!(get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(configure, 0x4c0a, LoopConfig);
    nix::ioctl_read_bad!(get_status, 0x4c05, LoopInfo);
}

/// Sends a message to the device mapper; its answer replaces the message.
pub(super) fn dm(control: &File, command: DmCommand, message: &mut [u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    if message.len() < DM_HEADER_LEN {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    message[DM_DATA_SIZE_AT..DM_DATA_SIZE_AT + 4].copy_from_slice(&length.to_ne_bytes());
    let request = nix::request_code_readwrite!(DM_IOCTL, command as u8, DM_HEADER_LEN);
    // SAFETY: the kernel reads and writes `data_size` bytes at the pointer, which was just
    // set to the length of `message`, borrowed exclusively until the call returns.
    let answer = unsafe { libc::ioctl(control.as_raw_fd(), request, message.as_mut_ptr()) };
    nix::errno::Errno::result(answer)?;
    Ok(())
}

/// The number of a loop device that nobody uses; somebody else may be faster.
pub(super) fn free_loop(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument, and the borrow keeps it open.
    let number = unsafe { ioctl::get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Attaches a file to a free loop device.
pub(super) fn configure_loop(device: &File, backing: &File, flags: u32) -> io::Result<()> {
    let descriptor: RawFd = backing.as_raw_fd();
    let config = LoopConfig {
        descriptor: u32::try_from(descriptor).map_err(io::Error::other)?,
        block_size: 0,
        info: LoopInfo {
            flags,
            ..LoopInfo::EMPTY
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one loop_config, which lives until the call returns;
    // the borrows keep both descriptors open, and the kernel takes a reference of its own.
    unsafe { ioctl::configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// What is attached to a loop device.
pub(super) fn loop_info(device: &File) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::EMPTY;
    // SAFETY: LOOP_GET_STATUS64 writes one loop_info64, borrowed exclusively until the
    // call returns; `device` is open.
    unsafe { ioctl::get_status(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);
