//! Devices of an old PC that a guest still needs, and the bus that finds any device.

pub mod bus;
pub mod console;
pub mod keyboard;
pub mod power;
pub mod serial;
pub mod vm_generation;
