//! Recipes of the guest kernel and of the root file systems, and the code that
//! builds them from Debian packages.
//!
//! ```text
//!  Debian archive ──apt──▶ packages ──dpkg -x──▶ kernel ───────────────▶ vmlinuz, vmlinux
//!                             │                    └─ modules + wrenn-envd ─▶ initrd.img
//!                             └──mmdebstrap──▶ tree ──mke2fs──▶ image ──debugfs──▶ rootfs.ext4
//!                                                                  wrenn-envd ──┘
//! ```
//!
//! Every product is a directory in the [`Cache`], named by the hash of its recipe. It is
//! built aside and renamed into place, so it exists whole or not at all. What changes often
//! (our own programs) goes in last, so that a new guest daemon costs seconds and not a
//! bootstrap.
//!
//! Nothing here prints: a [`Progress`] receives what happens.

pub mod archive;
pub mod cache;
pub mod command;
pub mod cpio;
pub mod error;
pub mod host_packages;
pub mod import;
pub mod install;
pub mod kernel;
pub mod modules;
pub mod own_kernel;
pub mod progress;
pub mod recipe;
pub mod rootfs;
pub mod strip;
pub mod transfer;
pub mod vmlinux;

pub use cache::Cache;
pub use error::BuildError;
pub use progress::{Event, Progress, Silent};
pub use recipe::Recipe;
