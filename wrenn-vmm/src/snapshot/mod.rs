//! Snapshots: a paused machine as two files, and a machine made of them.
//!
//! ```text
//!             Pause              create                     load
//! running ◀─────────▶ paused ────────────▶ state file ──┬──────────▶ paused ─▶ running
//!             Resume    │                  memory file ─┘             (another process)
//!                       └ Diff: only pages changed since the last snapshot or load
//! ```
//!
//! The state file ([`mod@file`]) holds what is not memory ([`state`]). The memory file
//! ([`memory_file`]) is guest memory as it is, region after region; what is zero in a
//! full one is a hole. On load, memory is a private mapping of that file, or it is left
//! empty and a page-fault server in another process fills it ([`pager`]).
//!
//! Nothing is synced: whoever asked knows when data must be on the disk, and whether it
//! goes there at all.

pub mod config;
pub mod file;
pub mod memory_file;
pub mod pager;
pub mod state;
