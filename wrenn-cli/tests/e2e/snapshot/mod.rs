//! Snapshots of machines.

mod crash;
mod cycle;
mod freed;
mod pager;
mod power;
mod sys;
mod templates;
mod vmm;
