//! ACPI tables (specification 6.5), hardware-reduced: no legacy event blocks, interrupts
//! and power-off through the tables alone.
//!
//! ```text
//! RSDP @ 0xe0000 ─▶ XSDT ─┬▶ FADT ─▶ DSDT   devices, in AML
//!                         └▶ MADT            I/O APIC, one local APIC a vCPU
//! ```
//!
//! The DSDT names the serial port (`PNP0501`), the keyboard controller (`PNP0303`), one
//! `LNRO0005` for each virtio-mmio window, the VM generation id (`VMGENCTR`), and the
//! event device (`ACPI0013`) whose interrupt tells the guest that the id changed.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml};
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::GuestMemory;

const OEM_ID: [u8; 6] = *b"WRENN ";
const OEM_TABLE_ID: [u8; 8] = *b"WRENNVMM";
const OEM_REVISION: u32 = 1;
const HYPERVISOR_ID: [u8; 8] = *b"WRENNVMM";

/// No VGA hardware (FADT boot architecture flags, bit 2).
const NO_VGA: u16 = 1 << 2;
/// No real-time clock in CMOS (bit 5).
const NO_CMOS_CLOCK: u16 = 1 << 5;
/// There is a keyboard controller (bit 1).
const KEYBOARD_CONTROLLER: u16 = 1 << 1;

/// The value that the guest writes to the sleep control register to power off: the type
/// of S5 from `_S5_`, shifted to its place, with the enable bit.
pub const SLEEP_POWER_OFF: u8 = (SLEEP_TYPE_S5 << 2) | (1 << 5);
const SLEEP_TYPE_S5: u8 = 5;

/// One virtio-mmio window for the tables.
#[derive(Clone, Copy, Debug)]
pub struct VirtioWindow {
    /// Guest address of its registers.
    pub start: u64,
    /// Its interrupt line.
    pub interrupt: u32,
}

/// The tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They would run into the root pointer.
    #[error("ACPI tables of {size} bytes do not fit their area")]
    TooLarge {
        /// Their size.
        size: u64,
    },
    /// Guest memory is too small even for this.
    #[error("cannot write ACPI tables to guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// Writes all tables.
///
/// # Errors
/// If they do not fit.
pub fn write(memory: &GuestMemory, vcpus: u8, windows: &[VirtioWindow]) -> Result<(), AcpiError> {
    let mut area = Area {
        memory,
        next: layout::ACPI_TABLES_START,
    };
    let dsdt = area.place(dsdt(windows).as_slice())?;
    let fadt = area.place(&bytes_of(&fadt(dsdt)))?;
    let madt = area.place(&bytes_of(&madt(vcpus)))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.place(&bytes_of(&xsdt))?;
    memory
        .write_slice(
            &bytes_of(&Rsdp::new(OEM_ID, xsdt)),
            GuestAddress(layout::RSDP_START),
        )
        .map_err(AcpiError::Write)
}

struct Area<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Area<'_> {
    fn place(&mut self, table: &[u8]) -> Result<u64, AcpiError> {
        const ALIGNMENT: u64 = 16;
        let start = self.next;
        self.next = (start + table.len() as u64).next_multiple_of(ALIGNMENT);
        if self.next > layout::SYSTEM_AREA_END {
            return Err(AcpiError::TooLarge {
                size: self.next - layout::ACPI_TABLES_START,
            });
        }
        self.memory
            .write_slice(table, GuestAddress(start))
            .map_err(AcpiError::Write)?;
        Ok(start)
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK | KEYBOARD_CONTROLLER).into();
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(HYPERVISOR_ID).into();
    let port = |number: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(number),
        )
    };
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_CONTROL_PORT + 1);
    fadt.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC_START),
    );
    madt.add_structure(IoApic::new(0, layout::IO_APIC_START, 0));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt
}

fn dsdt(windows: &[VirtioWindow]) -> Sdt {
    let mut code = Vec::new();
    serial_port(&mut code);
    keyboard_controller(&mut code);
    for (index, window) in (0u8..).zip(windows) {
        virtio_window(&mut code, index, *window);
    }
    vm_generation(&mut code);
    power_off(&mut code);

    const HEADER: u32 = 36;
    const REVISION: u8 = 6;
    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    dsdt.append_slice(&code);
    dsdt
}

/// An edge-triggered, active-high interrupt of the device alone: what an irqfd gives.
fn interrupt(line: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, line)
}

fn ports(first: u16, count: u8) -> aml::IO {
    aml::IO::new(first, first, 1, count)
}

fn serial_port(code: &mut dyn AmlSink) {
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_DDN".into(), &"COM1"),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &interrupt(layout::SERIAL_INTERRUPT),
                    &ports(layout::SERIAL_PORT_START, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

fn keyboard_controller(code: &mut dyn AmlSink) {
    aml::Device::new(
        "_SB_.PS2_".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0303")),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &ports(layout::KEYBOARD_PORT_START, 1),
                    &ports(layout::KEYBOARD_PORT_START + 4, 1),
                    &interrupt(layout::KEYBOARD_INTERRUPT),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

fn virtio_window(code: &mut dyn AmlSink, index: u8, window: VirtioWindow) {
    let start = below_4_gib(window.start);
    let size = below_4_gib(layout::VIRTIO_WINDOW_SIZE);
    aml::Device::new(
        format!("_SB_.V{index:03}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &index),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, start, size),
                    &interrupt(window.interrupt),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// The generation id's device and the event device that says it changed. Notification
/// 0x80 is the one that the id's specification assigns ("Virtual Machine Generation ID",
/// Microsoft, 2012).
fn vm_generation(code: &mut dyn AmlSink) {
    const CHANGED: u8 = 0x80;
    let low = below_4_gib(layout::VM_GENERATION_ID_START);
    aml::Device::new(
        "_SB_.VGEN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"VMGENCTR"),
            &aml::Name::new("_CID".into(), &"VM_Gen_Counter"),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&low, &aml::ZERO])),
        ],
    )
    .to_aml_bytes(code);

    let line = layout::VM_GENERATION_INTERRUPT;
    aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&interrupt(line)]),
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&aml::If::new(
                    &aml::Equal::new(&aml::Arg(0), &line),
                    vec![&aml::Notify::new(&aml::Path::new("\\_SB_.VGEN"), &CHANGED)],
                )],
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// The layout puts everything that tables name below 4 GiB.
fn below_4_gib(address: u64) -> u32 {
    debug_assert!(u32::try_from(address).is_ok());
    u32::try_from(address).unwrap_or(u32::MAX)
}

fn power_off(code: &mut dyn AmlSink) {
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&SLEEP_TYPE_S5])).to_aml_bytes(code);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HugePages, allocate};

    fn table(memory: &GuestMemory, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn address(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn windows(count: u32) -> Vec<VirtioWindow> {
        (0..count)
            .map(|index| VirtioWindow {
                start: layout::VIRTIO_WINDOWS_START + u64::from(index) * layout::VIRTIO_WINDOW_SIZE,
                interrupt: layout::VIRTIO_INTERRUPT_FIRST + index,
            })
            .collect()
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let memory = allocate(2, HugePages::None, false).unwrap();
        write(&memory, 32, &windows(18)).unwrap();

        let mut root = vec![0; 36];
        memory
            .read_slice(&mut root, GuestAddress(layout::RSDP_START))
            .unwrap();
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));

        let xsdt = table(&memory, address(&root, 24));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let fadt = table(&memory, address(&xsdt, 36));
        assert_eq!((&fadt[..4], sum(&fadt)), (&b"FACP"[..], 0));
        let madt = table(&memory, address(&xsdt, 44));
        assert_eq!((&madt[..4], sum(&madt)), (&b"APIC"[..], 0));
        let dsdt = table(&memory, address(&fadt, 140));
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
        assert_eq!(
            dsdt.windows(8).filter(|part| part == b"LNRO0005").count(),
            18
        );
        assert!(dsdt.windows(8).any(|part| part == b"VMGENCTR"));
    }

    #[test]
    fn interrupt_table_lists_each_vcpu() {
        let bytes = bytes_of(&madt(3));
        // Header 44 bytes, I/O APIC 12, then 8 bytes a vCPU: type 0, its number twice.
        let entries: Vec<_> = bytes[56..]
            .chunks(8)
            .map(|e| (e[0], e[2], e[3], e[4]))
            .collect();
        assert_eq!(entries, [(0, 0, 0, 1), (0, 1, 1, 1), (0, 2, 2, 1)]);
    }
}
