//! The engines that run microVM sandboxes, usable without any control plane.
//!
//! In reading order: a [`SandboxId`] names a sandbox; a [`RootDirectory`] says where its
//! files lie; a [`template`] is what it is made from; [`vm`] runs the virtual machine,
//! [`network`] gives it a slot, [`devicemapper`] a disk, [`guest`] talks to the daemon
//! inside; [`snapshot`] keeps frozen ones on disk; [`sandbox`] composes them all; a
//! [`fleet`] holds every sandbox of a host.
//!
//! ```no_run
//! use wrenn_core::guest::Command;
//! use wrenn_core::sandbox::{Host, HostConfig, SandboxConfig};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Host::open(HostConfig::default()).await?;
//! let sandbox = host.create(SandboxConfig::from_template("base")).await?;
//! let output = sandbox.guest().output(&Command::shell("uname -a")).await?;
//! println!("{}", String::from_utf8_lossy(&output.stdout));
//! sandbox.destroy().await?;
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod blocking;
mod chain;
pub mod crash;
mod id;
mod root;

pub mod devicemapper;
pub mod fleet;
pub mod guest;
pub mod network;
pub mod process;
pub mod sandbox;
pub mod snapshot;
pub mod template;
pub mod uffd;
pub mod vm;

pub use chain::Chain;
pub use id::{InvalidSandboxId, SandboxId};
pub use root::RootDirectory;

/// The guide to embedding, whose programs compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/embedding.md")]
struct Guide;
