//! The zero page: what the boot loader tells the kernel (Linux
//! `arch/x86/include/uapi/asm/bootparam.h`), with the e820 memory map.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::kernel::{LoadedInitrd, LoadedKernel};
use crate::layout;
use crate::memory::GuestMemory;
use crate::sys;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// What an ELF kernel, which has no header to say it, is aligned to.
const ELF_KERNEL_ALIGNMENT: u32 = 0x100_0000;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// The boot parameters could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ParametersError {
    /// The command line is too long.
    #[error("the kernel command line has {length} bytes, at most {most} are possible")]
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// The longest possible.
        most: usize,
    },
    /// The initrd lies where the boot protocol cannot say it.
    #[error("the initrd does not lie below 4 GiB")]
    InitrdPlace,
    /// Guest memory is too small even for this.
    #[error("cannot write boot parameters to guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// The e820 memory map: address, size and type of each range.
pub fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::SYSTEM_AREA_START, E820_RAM),
        (
            layout::SYSTEM_AREA_START,
            layout::SYSTEM_AREA_END - layout::SYSTEM_AREA_START,
            E820_RESERVED,
        ),
    ];
    for region in memory.iter() {
        let end = region.start_addr().0 + region.len();
        let start = region.start_addr().0.max(layout::HIGH_MEMORY_START);
        if start < end {
            map.push((start, end - start, E820_RAM));
        }
    }
    map
}

/// Writes command line and zero page.
///
/// # Errors
/// If the command line is too long or guest memory too small.
pub fn write(
    memory: &GuestMemory,
    kernel: &LoadedKernel,
    initrd: Option<LoadedInitrd>,
    command_line: &str,
) -> Result<(), ParametersError> {
    let most = layout::COMMAND_LINE_CAPACITY - 1;
    if command_line.len() > most {
        return Err(ParametersError::CommandLineTooLong {
            length: command_line.len(),
            most,
        });
    }
    let mut line = Vec::with_capacity(command_line.len() + 1);
    line.extend_from_slice(command_line.as_bytes());
    line.push(0);
    memory
        .write_slice(&line, GuestAddress(layout::COMMAND_LINE_START))
        .map_err(ParametersError::Write)?;

    let mut parameters = boot_params::default();
    if let Some(header) = kernel.header {
        parameters.hdr = header;
    } else {
        parameters.hdr.boot_flag = BOOT_FLAG;
        parameters.hdr.header = HEADER_MAGIC;
        parameters.hdr.kernel_alignment = ELF_KERNEL_ALIGNMENT;
    }
    parameters.hdr.type_of_loader = LOADER_UNDEFINED;
    // Both fit: the command line's place is a constant below 4 GiB.
    parameters.hdr.cmd_line_ptr = const { below_4_gib(layout::COMMAND_LINE_START) };
    parameters.hdr.cmdline_size = const { below_4_gib(layout::COMMAND_LINE_CAPACITY as u64 - 1) };
    if let Some(initrd) = initrd {
        let place = (u32::try_from(initrd.start), u32::try_from(initrd.size));
        let (Ok(start), Ok(size)) = place else {
            return Err(ParametersError::InitrdPlace);
        };
        parameters.hdr.ramdisk_image = start;
        parameters.hdr.ramdisk_size = size;
    }
    parameters.acpi_rsdp_addr = layout::RSDP_START;
    let map = memory_map(memory);
    for (slot, (addr, size, type_)) in parameters.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: *type_,
        };
        parameters.e820_entries += 1;
    }
    memory
        .write_slice(
            sys::boot_params::as_bytes(&parameters),
            GuestAddress(layout::ZERO_PAGE_START),
        )
        .map_err(ParametersError::Write)
}

#[expect(clippy::cast_possible_truncation, reason = "asserted to fit")]
const fn below_4_gib(value: u64) -> u32 {
    assert!(value <= u32::MAX as u64);
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HugePages, allocate};

    const KERNEL: LoadedKernel = LoadedKernel {
        entry: 0x100_0000,
        end: 0x200_0000,
        header: None,
    };

    #[test]
    fn memory_map_reserves_the_tables_and_skips_the_hole() {
        let memory = allocate(4096, HugePages::None, false).unwrap();
        assert_eq!(
            memory_map(&memory),
            [
                (0, 0x9_fc00, E820_RAM),
                (0x9_fc00, 0x4_0400, E820_RESERVED),
                (0x10_0000, 0xbff0_0000, E820_RAM),
                (1 << 32, 1 << 30, E820_RAM),
            ]
        );
    }

    #[test]
    fn zero_page_carries_command_line_initrd_and_root_pointer() {
        let memory = allocate(32, HugePages::None, false).unwrap();
        let initrd = LoadedInitrd {
            start: 0x180_0000,
            size: 0x1234,
        };
        write(&memory, &KERNEL, Some(initrd), "console=ttyS0").unwrap();

        // Offsets from Linux Documentation/arch/x86/zero-page.rst.
        let read32 = |offset| -> u32 {
            memory
                .read_obj(GuestAddress(layout::ZERO_PAGE_START + offset))
                .unwrap()
        };
        assert_eq!(read32(0x202), HEADER_MAGIC);
        assert_eq!(read32(0x218), 0x180_0000);
        assert_eq!(read32(0x21c), 0x1234);
        assert_eq!(read32(0x228), 0x2_0000);
        assert_eq!(read32(0x070), 0xe_0000);
        let entries: u8 = memory
            .read_obj(GuestAddress(layout::ZERO_PAGE_START + 0x1e8))
            .unwrap();
        assert_eq!(entries, 3);
        let mut line = [0u8; 14];
        memory
            .read_slice(&mut line, GuestAddress(layout::COMMAND_LINE_START))
            .unwrap();
        assert_eq!(&line, b"console=ttyS0\0");
    }

    #[test]
    fn command_line_has_a_limit() {
        let memory = allocate(32, HugePages::None, false).unwrap();
        assert!(write(&memory, &KERNEL, None, &"x".repeat(2047)).is_ok());
        assert!(matches!(
            write(&memory, &KERNEL, None, &"x".repeat(2048)),
            Err(ParametersError::CommandLineTooLong {
                length: 2048,
                most: 2047
            })
        ));
    }
}
