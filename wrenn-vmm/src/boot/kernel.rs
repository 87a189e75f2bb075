//! Loads a kernel and an initrd. Both kinds of kernel file are entered at their 64-bit
//! entry point: a `bzImage` 0x200 bytes past its load address, where it unpacks itself,
//! an ELF `vmlinux`, already unpacked and so quicker to boot, where its header says.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::elf::{self, ElfError};
use crate::layout;
use crate::memory::{GuestMemory, PAGE_SIZE, host_length};

/// The kernel can be entered at its 64-bit entry point (Linux `XLF_KERNEL_64`).
const LOAD_FLAG_64_BIT: u16 = 1;
/// Offset of the 64-bit entry point from the load address.
const ENTRY_64_BIT: u64 = 0x200;
/// An initrd may lie up to here if the kernel does not say (Linux boot protocol).
const DEFAULT_INITRD_LIMIT: u64 = 0x8000_0000;

/// A kernel in guest memory.
#[derive(Debug)]
pub struct LoadedKernel {
    /// Where the boot processor enters it.
    pub entry: u64,
    /// First address past it.
    pub end: u64,
    /// The header of a `bzImage`.
    pub header: Option<setup_header>,
}

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedInitrd {
    /// Where it lies.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// Kernel or initrd could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the {what}")]
    Read {
        /// Kernel or initrd.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file starts neither like ELF nor like a bzImage.
    #[error("the kernel is neither an ELF vmlinux nor a bzImage")]
    UnknownFormat,
    /// The loader found the file wrong, or it does not fit guest memory.
    #[error("cannot load the kernel into guest memory (is the memory large enough?)")]
    Kernel(#[source] LoaderError),
    /// The ELF file is wrong, or does not fit.
    #[error("cannot load the ELF kernel")]
    Elf(#[from] ElfError),
    /// Too old a bzImage.
    #[error("the bzImage has no 64-bit entry point")]
    No64BitEntry,
    /// The initrd does not fit.
    #[error("an initrd of {size} bytes does not fit guest memory behind the kernel")]
    InitrdTooLarge {
        /// Its size.
        size: u64,
    },
    /// The initrd could not be copied.
    #[error("cannot copy the initrd into guest memory")]
    Initrd(#[source] vm_memory::GuestMemoryError),
}

/// Loads an ELF or bzImage kernel.
///
/// # Errors
/// If the file is neither, is damaged, or does not fit.
pub fn load_kernel(memory: &GuestMemory, file: &mut File) -> Result<LoadedKernel, LoadError> {
    let mut magic = [0u8; 4];
    file.read_exact_at(&mut magic, 0)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => LoadError::UnknownFormat,
            _ => LoadError::Read {
                what: "kernel",
                source: error,
            },
        })?;
    let high_memory = Some(GuestAddress(layout::HIGH_MEMORY_START));
    if &magic == b"\x7fELF" {
        return Ok(elf::load(memory, file)?);
    }

    let mut signature = [0u8; 4];
    if file.read_exact_at(&mut signature, 0x202).is_err() || &signature != b"HdrS" {
        return Err(LoadError::UnknownFormat);
    }
    let loaded = BzImage::load(memory, None, file, high_memory).map_err(LoadError::Kernel)?;
    let header = loaded.setup_header.ok_or(LoadError::UnknownFormat)?;
    if header.xloadflags & LOAD_FLAG_64_BIT == 0 {
        return Err(LoadError::No64BitEntry);
    }
    // It unpacks itself at its preferred address and needs room there.
    let unpacked = { header.pref_address }.saturating_add(u64::from(header.init_size));
    Ok(LoadedKernel {
        entry: loaded.kernel_load.0 + ENTRY_64_BIT,
        end: loaded.kernel_end.max(unpacked),
        header: Some(header),
    })
}

/// Loads an initrd as high as the kernel can take it, so that it is out of the way of
/// whatever the kernel unpacks.
///
/// # Errors
/// If it cannot be read or does not fit.
pub fn load_initrd(
    memory: &GuestMemory,
    file: &mut File,
    kernel: &LoadedKernel,
) -> Result<LoadedInitrd, LoadError> {
    let read = |source| LoadError::Read {
        what: "initrd",
        source,
    };
    let size = file.seek(SeekFrom::End(0)).map_err(read)?;
    file.rewind().map_err(read)?;
    let low_memory_end = memory
        .find_region(GuestAddress(0))
        .map_or(0, |region| region.start_addr().0 + region.len());
    let limit = kernel
        .header
        .map_or(DEFAULT_INITRD_LIMIT, |header| {
            u64::from(header.initrd_addr_max) + 1
        })
        .min(low_memory_end);
    let page = PAGE_SIZE as u64;
    let start = limit.checked_sub(size).map(|start| start / page * page);
    match start {
        Some(start) if start >= kernel.end.max(layout::HIGH_MEMORY_START) => {
            memory
                .read_exact_volatile_from(GuestAddress(start), file, host_length(size))
                .map_err(LoadError::Initrd)?;
            Ok(LoadedInitrd { start, size })
        }
        _ => Err(LoadError::InitrdTooLarge { size }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory::{HugePages, allocate};

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    const KERNEL: LoadedKernel = LoadedKernel {
        entry: 0x100_0000,
        end: 0x40_0000,
        header: None,
    };

    #[test]
    fn initrd_lies_at_the_end_of_low_memory() {
        let memory = allocate(16, HugePages::None, false).unwrap();
        let loaded = load_initrd(&memory, &mut file(&[7; 5000]), &KERNEL).unwrap();
        assert_eq!(
            loaded,
            LoadedInitrd {
                start: (16 << 20) - 8192,
                size: 5000
            }
        );
        let first: u8 = memory.read_obj(GuestAddress(loaded.start)).unwrap();
        let last: u8 = memory.read_obj(GuestAddress(loaded.start + 4999)).unwrap();
        assert_eq!((first, last), (7, 7));
    }

    #[test]
    fn initrd_must_not_reach_into_the_kernel() {
        let memory = allocate(4, HugePages::None, false).unwrap();
        assert!(matches!(
            load_initrd(&memory, &mut file(&[7; 5000]), &KERNEL),
            Err(LoadError::InitrdTooLarge { size: 5000 })
        ));
    }

    #[test]
    fn other_files_are_no_kernels() {
        let memory = allocate(4, HugePages::None, false).unwrap();
        for content in [&b""[..], b"\x7fEL", b"#!/bin/sh\n", &[0; 4096]] {
            assert!(matches!(
                load_kernel(&memory, &mut file(content)),
                Err(LoadError::UnknownFormat)
            ));
        }
    }

    #[test]
    fn damaged_elf_is_refused() {
        let memory = allocate(4, HugePages::None, false).unwrap();
        let mut content = vec![0xff; 4096];
        content[..4].copy_from_slice(b"\x7fELF");
        assert!(matches!(
            load_kernel(&memory, &mut file(&content)),
            Err(LoadError::Elf(_))
        ));
    }
}
