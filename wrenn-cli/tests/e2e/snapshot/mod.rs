//! Snapshots of machines.

mod crash;
mod cycle;
mod pager;
mod power;
mod sys;
mod templates;
mod vmm;
