//! Slots with real namespaces and real packets. Needs root, `/dev/net/tun`, nf_tables and
//! `ip`; touches nothing outside the namespaces that each test makes for itself.

mod lifecycle;
mod policy;
mod sys;
mod world;
