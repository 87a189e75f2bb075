//! Snapshots of machines.

mod pager;
mod sys;
mod vmm;
