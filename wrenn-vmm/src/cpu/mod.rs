//! The virtual processors: what they claim to be, how they start, how they run.

pub mod compatibility;
pub mod cpuid;
pub mod msrs;
pub mod registers;
pub mod state;
pub mod thread;
