//! The daemon inside the guest, and the guest's init.
//!
//! One static program with three lives:
//!
//! ```text
//!  /init in the initramfs ──▶ stage one: modules, root file system ──┐   [`init::stage_one`]
//!                                                                    ▼ exec
//!  init=… on the root     ──▶ stage two: mounts, network, reaper ────┐   [`init::stage_two`]
//!                                                                    ▼ fork, again if it dies
//!  any other pid          ──▶ the daemon: port 49983                     [`server`]
//! ```
//!
//! The daemon speaks one protocol for processes, files and set-up; `wrenn_proto` holds
//! its messages. Its modules in reading order:
//!
//! - [`server`] takes connections, [`router`] sends each request past [`auth`] to its
//!   place: Connect RPC to [`process::service`] and [`filesystem::service`], plain HTTP
//!   to [`files`], [`archive`], [`setup`], [`disks`], [`programs`] and [`metrics`];
//! - [`guest`] is what requests share, [`users`] and [`paths`] say who and where;
//! - [`sys`] holds the unsafe code.
//!
//! The guest is its user's: whoever holds the access token may do everything in it. What
//! is protected is the way in, and that no request takes the daemon down with it.

pub mod archive;
pub mod auth;
pub mod config;
pub mod connections;
pub mod disks;
pub mod files;
pub mod filesystem;
pub mod guest;
pub mod hostname;
pub mod identity;
pub mod init;
pub mod metrics;
pub mod paths;
pub mod process;
pub mod programs;
pub mod query;
pub mod reply;
pub mod router;
pub mod server;
pub mod setup;
pub mod state;
pub mod sys;
pub mod users;

/// The protocol's version that clients decide by: recursive watches, stdin flag,
/// server-side default user, closing stdin, byte uploads, metadata, entries in events,
/// watches on network mounts.
pub const PROTOCOL_VERSION: &str = "0.6.4";
