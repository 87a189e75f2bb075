//! A small virtual machine monitor on KVM. It boots Linux without firmware, gives it
//! virtio devices through memory-mapped windows, and is controlled through the HTTP API
//! of Firecracker on a Unix socket.
//!
//! ```text
//! arguments ─▶ run ─▶ api ─▶ machine ─┬─ cpu      vCPU threads
//!                                     ├─ boot     kernel, parameters, ACPI tables
//!                                     ├─ devices  serial port, keyboard, power
//!                                     ├─ virtio   drives, network, entropy, balloon
//!                                     └─ snapshot the whole machine as two files
//! ```
//!
//! The guest is hostile. Whatever it writes, into memory or registers, is bounded before
//! it is used, and no more than its own machine stops because of it. Memory is touched
//! unsafely in [`sys`] only.

pub mod api;
pub mod arguments;
pub mod boot;
pub mod budget;
pub mod config;
pub mod cpu;
pub mod devices;
pub mod event_loop;
pub mod exit;
pub mod layout;
pub mod logger;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod rate_limiter;
pub mod run;
pub mod seccomp;
pub mod snapshot;
pub mod sync;
pub mod sys;
pub mod virtio;
