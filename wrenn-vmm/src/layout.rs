//! Where everything lies in the guest's physical address space.
//!
//! ```text
//! 0x0000_0500  GDT, IDT                          ┐
//! 0x0000_7000  zero page (boot parameters)       │ low memory, given to the
//! 0x0000_8ff0  boot stack (grows down)           │ kernel as ordinary RAM
//! 0x0000_9000  page tables of the boot CPU       │
//! 0x0002_0000  kernel command line               ┘
//! 0x0009_fc00  ACPI tables, VM generation id       reserved in the e820 map
//! 0x000e_0000  ACPI root pointer (RSDP)
//! 0x0010_0000  kernel                            ┐
//!     …        initrd, as high as it may lie     │ RAM
//! 0xc000_0000  end of low RAM                    ┘
//! 0xc000_1000  virtio-mmio windows, 4 KiB each     hole for devices
//! 0xfec0_0000  I/O APIC     0xfee0_0000 local APICs
//! 0xfffb_d000  task state segment that KVM needs on some hosts
//! 0x1_0000_0000  RAM beyond the first 3 GiB
//! ```

/// Global descriptor table of the boot CPU.
pub const GDT_START: u64 = 0x500;
/// Interrupt descriptor table of the boot CPU (empty).
pub const IDT_START: u64 = 0x520 + 0x20;
/// The Linux boot parameters, called the zero page.
pub const ZERO_PAGE_START: u64 = 0x7000;
/// First stack of the boot CPU.
pub const BOOT_STACK_POINTER: u64 = 0x8ff0;
/// Top-level page table of the boot CPU.
pub const PML4_START: u64 = 0x9000;
/// Second-level page table.
pub const PDPT_START: u64 = 0xa000;
/// Third-level page table, 512 pages of 2 MiB.
pub const PD_START: u64 = 0xb000;
/// Kernel command line.
pub const COMMAND_LINE_START: u64 = 0x2_0000;
/// Longest kernel command line with its terminating zero, as Firecracker has it and
/// x86 Linux (`COMMAND_LINE_SIZE`) reads it.
pub const COMMAND_LINE_CAPACITY: usize = 2048;

/// Start of the area for tables that the guest must not use as RAM.
pub const SYSTEM_AREA_START: u64 = 0x9_fc00;
/// Where the VM generation id lies. Its own page-aligned place, so that a snapshot
/// finds it without parsing any table.
pub const VM_GENERATION_ID_START: u64 = 0xa_0000;
/// Where the ACPI tables start.
pub const ACPI_TABLES_START: u64 = 0xa_1000;
/// The ACPI root pointer; firmware puts it between 0xe0000 and 0xfffff.
pub const RSDP_START: u64 = 0xe_0000;
/// End of the reserved area.
pub const SYSTEM_AREA_END: u64 = RSDP_START;

/// First byte of RAM past the legacy megabyte; kernels load from here on.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Start of the hole for devices below 4 GiB.
pub const DEVICE_HOLE_START: u64 = 0xc000_0000;
/// End of that hole, where RAM continues.
pub const DEVICE_HOLE_END: u64 = 1 << 32;
/// The first virtio-mmio window.
pub const VIRTIO_WINDOWS_START: u64 = DEVICE_HOLE_START + 0x1000;
/// Size of one virtio-mmio window.
pub const VIRTIO_WINDOW_SIZE: u64 = 0x1000;

/// I/O APIC registers.
pub const IO_APIC_START: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC_START: u32 = 0xfee0_0000;
/// Three pages that Intel hosts without unrestricted guest mode need.
pub const KVM_TSS_START: u64 = 0xfffb_d000;

/// Interrupt line of the keyboard controller.
pub const KEYBOARD_INTERRUPT: u32 = 1;
/// Interrupt line of the first serial port.
pub const SERIAL_INTERRUPT: u32 = 4;
/// Interrupt line of the VM generation id.
pub const VM_GENERATION_INTERRUPT: u32 = 5;
/// First interrupt line for virtio devices.
pub const VIRTIO_INTERRUPT_FIRST: u32 = 6;
/// Last input of the I/O APIC.
pub const VIRTIO_INTERRUPT_LAST: u32 = 23;

/// First I/O port of the first serial port.
pub const SERIAL_PORT_START: u16 = 0x3f8;
/// How many I/O ports a serial port has.
pub const SERIAL_PORT_COUNT: u16 = 8;
/// Data port of the keyboard controller; command and status follow at 0x64.
pub const KEYBOARD_PORT_START: u16 = 0x60;
/// How many I/O ports the keyboard controller spans.
pub const KEYBOARD_PORT_COUNT: u16 = 5;
/// The ACPI sleep control register; sleep status follows.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
