//! The machine: a QEMU virtual machine that stands in for a host without usable KVM or
//! device mapper, and the probes that tell whether it is needed.
//!
//! ```text
//! host                                      machine (QEMU, KVM or emulation)
//! ┌──────────────────────────┐              ┌───────────────────────────────────────────┐
//! │ Machine::start           │── builds ───▶│ kernel, initramfs: wrenn-machine-init      │
//! │   state directory        │              │ /dev/vd?  images  ext4, read-only          │
//! │     lock machine.json    │              │ /dev/vd?  data    XFS ─▶ /var/lib/wrenn    │
//! │     token console.log    │◀─ serial ────│ console                                    │
//! │     qmp.sock             │── QMP ──────▶│ power button, port forwards                │
//! │ MachineClient ─ loopback │── TCP ──────▶│ wrenn-envd :49983                          │
//! └──────────────────────────┘              └───────────────────────────────────────────┘
//! ```
//!
//! The machine's network is closed: nothing inside reaches the host or beyond, and the host
//! reaches only the ports that were forwarded, on its loopback ([`Running::forward`]). It can
//! be [opened](MachineNetwork::Open) to the outside.
//!
//! A machine is known by its name. Its recipe (kernel, initramfs, images, size, network) is hashed;
//! starting one that runs with the same recipe is a no-op, and one with another recipe is
//! stopped first. What must survive that lies on the data disk.

pub mod accelerator;
mod artifacts;
pub mod client;
mod command_line;
pub mod config;
mod detached;
pub mod error;
mod forward;
pub mod host;
mod machine;
mod qmp;
mod state;

pub use accelerator::Accelerator;
pub use client::MachineClient;
pub use config::{MachineConfig, MachineName, MachineNetwork, Programs};
pub use detached::DetachedProgram;
pub use error::MachineError;
pub use machine::{Machine, Running, Status};
