//! The pager: the page-fault server that feeds a restored VM its memory.
//!
//! ```text
//!  VMM                                          pager
//!  guest memory, nothing in it ──userfaultfd──▶ handshake: who, where, how much
//!  a vCPU touches a page ───────fault─────────▶ worker ─▶ extent ─▶ file or zero
//!  goes on ◀────────────────────────────────── UFFDIO_COPY of the page and what is around
//!  balloon: madvise ────────────removed───────▶ zero from now on
//!  ends ────────────────────────pidfd─────────▶ ends too
//! ```
//!
//! A fault brings its neighbourhood. What a VM needs first after a resume is recorded once
//! as its [`WorkingSet`], and prefetched at all later resumes.
//!
//! If a pager dies, its VM hangs for ever. So each restored VM has one in a process of its
//! own, `wrenn-pager`, that outlives whoever started it, and whoever owns the VM watches
//! both by pidfd, see [`process`]. If a pager cannot go on, it kills its VM. An embedding
//! program may also [`serve`] on a thread of its own.
//!
//! All that comes from the VMM is hostile: it is assumed to be taken over one day.

mod confine;
mod counters;
mod fill;
mod handshake;
mod layout;
mod pager;
mod source;
mod spent;
mod sys;
mod worker;
mod working_set;

pub mod process;
pub mod program;
pub mod stand_in;

pub use confine::ConfineError;
pub use counters::Counters;
pub use fill::FillError;
pub use handshake::HandshakeError;
pub use layout::LayoutError;
pub use pager::{
    BindError, Outcome, Pager, PagerConfig, Report, ServeError, Stopper, WorkingSetFile, serve,
};
pub use source::{Backing, Extent, MemorySource, ReadError, SourceError};
pub use working_set::{LoadWorkingSetError, Range, RecordError, WorkingSet};

/// The size of an ordinary page.
pub const PAGE_SIZE: u64 = 4096;
/// The size of a huge page, where a VM has such.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;
