//! The control plane and a fake host: what must never happen, one file for each topic.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod api;
mod destroy;
mod hang_up;
mod idempotency;
mod kill;
mod lease;
mod listing;
mod operation;
mod snapshot;
