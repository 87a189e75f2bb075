//! What stands in guest memory before the first instruction runs: kernel, initrd,
//! command line, boot parameters and ACPI tables. There is no firmware.

pub mod acpi;
pub mod elf;
pub mod kernel;
pub mod parameters;
