//! The control plane with real microVMs: `wrenn up` as a program, used over HTTP by the SDK.

mod fixture;
mod kill;
mod orphans;
mod routes;
