//! The pager against a stand-in for a VMM: memory in this process or in one that a test
//! starts, handed over as a VMM does. Needs the right to make a userfaultfd, as root has.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod contents;
mod cycles;
mod failures;
mod hostile;
mod saved;
mod working_set;
