//! The fake host over its RPCs, as a control plane calls it.

#![allow(
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "a test's failure is a panic"
)]

mod client;
mod exec;
mod faults;
mod files;
mod lifecycle;
mod processes;
