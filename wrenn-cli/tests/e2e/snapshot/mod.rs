//! Snapshots of machines.

mod cycle;
mod pager;
mod sys;
mod templates;
mod vmm;
