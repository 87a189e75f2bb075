//! Registers of the boot processor, as the 64-bit boot protocol of x86 Linux wants them
//! (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"): long mode, the
//! first GiB mapped one to one, `__BOOT_CS` = 0x10, `__BOOT_DS` = 0x18, `rsi` pointing
//! at the zero page. Other processors wait for the boot processor's start-up message.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::GuestMemory;

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLED: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

/// Flags of a 64-bit code segment that is present, readable and of 4 KiB granularity.
const CODE_FLAGS: u16 = 0xa09b;
/// Flags of a writable data segment.
const DATA_FLAGS: u16 = 0xc093;
/// Flags of a busy 64-bit task state segment.
const TASK_FLAGS: u16 = 0x808b;

const CODE_INDEX: u16 = 2;
const DATA_INDEX: u16 = 3;
const TASK_INDEX: u16 = 4;

/// Registers could not be set.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// KVM refused.
    #[error("cannot {what} of a vCPU")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Tables do not fit guest memory.
    #[error("cannot write descriptor or page tables to guest memory")]
    Tables(#[source] vm_memory::GuestMemoryError),
}

const fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RegistersError {
    move |source| RegistersError::Kvm { what, source }
}

/// Prepares a vCPU to enter the kernel at `entry` with the zero page in `rsi`.
///
/// # Errors
/// If KVM or guest memory refuses.
pub fn set_up_boot(vcpu: &VcpuFd, memory: &GuestMemory, entry: u64) -> Result<(), RegistersError> {
    write_page_tables(memory).map_err(RegistersError::Tables)?;
    write_descriptor_tables(memory).map_err(RegistersError::Tables)?;

    let mut special = vcpu.get_sregs().map_err(kvm("read segment registers"))?;
    let data = segment(DATA_FLAGS, DATA_INDEX);
    special.cs = segment(CODE_FLAGS, CODE_INDEX);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = segment(TASK_FLAGS, TASK_INDEX);
    special.gdt = kvm_dtable {
        base: layout::GDT_START,
        limit: GDT_LIMIT,
        ..Default::default()
    };
    special.idt = kvm_dtable {
        base: layout::IDT_START,
        limit: 7,
        ..Default::default()
    };
    special.cr0 |= CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    special.cr3 = layout::PML4_START;
    special.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
    special.efer |= EFER_LONG_MODE_ENABLED | EFER_LONG_MODE_ACTIVE;
    vcpu.set_sregs(&special)
        .map_err(kvm("set segment registers"))?;

    let general = kvm_regs {
        // Bit 1 is always one; interrupts are off.
        rflags: 0b10,
        rip: entry,
        rsp: layout::BOOT_STACK_POINTER,
        rbp: layout::BOOT_STACK_POINTER,
        rsi: layout::ZERO_PAGE_START,
        ..Default::default()
    };
    vcpu.set_regs(&general).map_err(kvm("set registers"))?;

    // The power-on values of the floating point unit.
    let float = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&float)
        .map_err(kvm("set the floating point unit"))
}

/// Connects the legacy interrupt controller and the non-maskable interrupt to the local
/// APIC, as firmware would.
///
/// # Errors
/// If KVM refuses.
pub fn set_up_local_interrupts(vcpu: &VcpuFd) -> Result<(), RegistersError> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4 << 8;
    const MODE_EXTERNAL: u32 = 7 << 8;
    const MODE_MASK: u32 = 7 << 8;

    let mut apic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
    for (offset, mode) in [(LINT0, MODE_EXTERNAL), (LINT1, MODE_NMI)] {
        let register = &mut apic.regs[offset..offset + 4];
        let mut bytes = [0u8; 4];
        for (byte, signed) in bytes.iter_mut().zip(register.iter()) {
            *byte = signed.cast_unsigned();
        }
        let value = (u32::from_le_bytes(bytes) & !MODE_MASK) | mode;
        for (signed, byte) in register.iter_mut().zip(value.to_le_bytes()) {
            *signed = byte.cast_signed();
        }
    }
    vcpu.set_lapic(&apic).map_err(kvm("set the local APIC"))
}

const GDT_ENTRIES: usize = 6;
const GDT_LIMIT: u16 = 8 * 6 - 1;

/// One descriptor with base 0 and the largest limit (Intel manual 3A, figure 3-8).
const fn descriptor(flags: u16) -> u64 {
    let flags = flags as u64;
    0xffff | ((flags & 0xff) << 40) | (0xf << 48) | ((flags >> 12) << 52)
}

const fn segment(flags: u16, index: u16) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xf_ffff,
        selector: index * 8,
        type_: (flags & 0xf) as u8,
        s: ((flags >> 4) & 1) as u8,
        dpl: ((flags >> 5) & 3) as u8,
        present: ((flags >> 7) & 1) as u8,
        avl: ((flags >> 12) & 1) as u8,
        l: ((flags >> 13) & 1) as u8,
        db: ((flags >> 14) & 1) as u8,
        g: ((flags >> 15) & 1) as u8,
        unusable: 0,
        padding: 0,
    }
}

fn write_descriptor_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    let mut table = [0u64; GDT_ENTRIES];
    table[CODE_INDEX as usize] = descriptor(CODE_FLAGS);
    table[DATA_INDEX as usize] = descriptor(DATA_FLAGS);
    // A task state descriptor takes two entries in long mode; the upper half of base 0 is 0.
    table[TASK_INDEX as usize] = descriptor(TASK_FLAGS);
    for (address, entry) in (layout::GDT_START..).step_by(8).zip(table) {
        memory.write_obj(entry, GuestAddress(address))?;
    }
    memory.write_obj(0u64, GuestAddress(layout::IDT_START))
}

fn write_page_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(
        layout::PDPT_START | PRESENT_WRITABLE,
        GuestAddress(layout::PML4_START),
    )?;
    memory.write_obj(
        layout::PD_START | PRESENT_WRITABLE,
        GuestAddress(layout::PDPT_START),
    )?;
    let mut directory = [0u8; 4096];
    for (index, entry) in (0u64..).zip(directory.chunks_exact_mut(8)) {
        entry.copy_from_slice(&((index << 21) | PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes());
    }
    memory.write_slice(&directory, GuestAddress(layout::PD_START))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, HugePages};

    #[test]
    fn descriptors_match_the_manual() {
        assert_eq!(descriptor(CODE_FLAGS), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(DATA_FLAGS), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn selectors_are_those_of_the_boot_protocol() {
        assert_eq!(segment(CODE_FLAGS, CODE_INDEX).selector, 0x10);
        assert_eq!(segment(DATA_FLAGS, DATA_INDEX).selector, 0x18);
        let code = segment(CODE_FLAGS, CODE_INDEX);
        assert_eq!(
            (code.l, code.db, code.g, code.present, code.type_),
            (1, 0, 1, 1, 0xb)
        );
    }

    #[test]
    fn page_tables_map_the_first_gib_to_itself() {
        let memory = memory::allocate(2, HugePages::None, false).unwrap();
        write_page_tables(&memory).unwrap();
        for page in [0u64, 1, 511] {
            let entry: u64 = memory
                .read_obj(GuestAddress(layout::PD_START + 8 * page))
                .unwrap();
            assert_eq!(entry, (page * 0x20_0000) | 0x83);
        }
        let top: u64 = memory.read_obj(GuestAddress(layout::PML4_START)).unwrap();
        assert_eq!(top, layout::PDPT_START | 3);
    }
}
