//! The pager against a stand-in for a VMM: memory in this process or in one that a test
//! starts, handed over as a VMM does. Needs the right to make a userfaultfd, as root has.

mod contents;
mod cycles;
mod failures;
mod hostile;
mod saved;
mod working_set;
