//! The ioctls of `linux/dm-ioctl.h` and `linux/loop.h` that the floor consists of.

#![allow(unsafe_code, reason = "these ioctls have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;

/// Length of `struct dm_ioctl`, which is in the number of every command.
const HEADER_LEN: usize = 312;

/// How a file is attached to a loop device, as its flags.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Access {
    /// `LO_FLAGS_READ_ONLY`, `LO_FLAGS_AUTOCLEAR`
    ReadOnly = 1 | 4,
    /// `LO_FLAGS_AUTOCLEAR`, `LO_FLAGS_DIRECT_IO`
    DirectIo = 4 | 16,
}

/// Commands of the device mapper, with their numbers.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Command {
    Create = 3,
    Remove = 4,
    /// Without its flag it resumes.
    Suspend = 6,
    LoadTable = 9,
}

/// `struct dm_ioctl` with one `struct dm_target_spec` and its line behind it.
#[repr(C)]
pub(crate) struct Message {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: u32,
    flags: u32,
    event: u32,
    padding: u32,
    device: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
    start: u64,
    sectors: u64,
    status: i32,
    next: u32,
    kind: [u8; 16],
    line: [u8; 64],
}

impl Message {
    pub(crate) fn of(device: &str) -> Self {
        let mut message = Self {
            version: [4, 0, 0],
            data_size: u32::try_from(size_of::<Self>()).unwrap_or_default(),
            data_start: u32::try_from(HEADER_LEN).unwrap_or_default(),
            target_count: 0,
            open_count: 0,
            flags: 0,
            event: 0,
            padding: 0,
            device: 0,
            name: [0; 128],
            uuid: [0; 129],
            data: [0; 7],
            start: 0,
            sectors: 0,
            status: 0,
            next: 0,
            kind: [0; 16],
            line: [0; 64],
        };
        message.name[..device.len()].copy_from_slice(device.as_bytes());
        message
    }

    pub(crate) fn with_table(mut self, sectors: u64, kind: &str, line: &str) -> Self {
        self.target_count = 1;
        self.sectors = sectors;
        self.kind[..kind.len()].copy_from_slice(kind.as_bytes());
        self.line[..line.len()].copy_from_slice(line.as_bytes());
        self
    }

    pub(crate) fn device(&self) -> u64 {
        self.device
    }
}

/// `struct loop_config`, of which only the beginning is used.
#[repr(C)]
struct LoopConfig {
    descriptor: u32,
    block_size: u32,
    numbers: [u64; 5],
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    names: [u8; 160],
    rest: [u64; 10],
}

/// Sends a message to the device mapper; its answer replaces the message.
pub(crate) fn dm(control: &File, command: Command, message: &mut Message) -> io::Result<()> {
    let request = nix::request_code_readwrite!(0xfd, command as u8, HEADER_LEN);
    // SAFETY: the kernel reads and writes `data_size` bytes, which is the message's own
    // size; it is borrowed exclusively until the call returns.
    let answer = unsafe { libc::ioctl(control.as_raw_fd(), request, &raw mut *message) };
    nix::errno::Errno::result(answer)?;
    Ok(())
}

/// The number of a loop device that nobody uses.
pub(crate) fn free_loop(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument, and the borrow keeps it open.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), 0x4c82) };
    let number = nix::errno::Errno::result(number)?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Attaches a file to a free loop device.
pub(crate) fn configure_loop(device: &File, backing: &File, access: Access) -> io::Result<()> {
    let config = LoopConfig {
        descriptor: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        block_size: 0,
        numbers: [0; 5],
        number: 0,
        encryption: [0; 2],
        flags: access as u32,
        names: [0; 160],
        rest: [0; 10],
    };
    // SAFETY: LOOP_CONFIGURE reads one loop_config, which lives until the call returns; the
    // borrows keep both descriptors open.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), 0x4c0a, &raw const config) };
    nix::errno::Errno::result(answer)?;
    Ok(())
}

const _: () = assert!(std::mem::offset_of!(Message, start) == HEADER_LEN);
const _: () = assert!(size_of::<LoopConfig>() == 304);
