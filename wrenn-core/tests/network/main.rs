//! Slots with real namespaces and real packets. Needs root, `/dev/net/tun`, nf_tables and
//! `ip`; touches nothing outside the namespaces that each test makes for itself.

#![allow(
    clippy::unwrap_used,
    reason = "a test says by panicking what went wrong"
)]

mod adopt;
mod connections;
mod counters;
mod doomed;
mod egress;
mod firewall;
mod lifecycle;
mod policy;
mod pool;
mod sys;
mod world;
