//! Snapshots of machines.

mod crash;
mod cycle;
mod pager;
mod sys;
mod templates;
mod vmm;
