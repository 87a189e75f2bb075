//! The end-to-end suite: real microVMs, real networks, the real program.
//!
//! `cargo xtask e2e [FILTER]` builds this and runs it where VMs run. Test names begin with
//! their suite: `agent`, `guest`, `kernel`, `network`, `run`, `server`, `snapshot`. Every test goes through
//! [`stage::enter`], which lets one at a time onto the host and asserts afterwards that it left
//! nothing behind.

mod agent;
mod guest;
mod kernel;
mod network;
mod run;
mod server;
mod snapshot;
mod stage;
