//! Snapshots of machines.

mod crash;
mod cycle;
mod freed;
mod hostile;
mod pager;
mod power;
mod records;
mod sys;
mod templates;
mod vmm;
