//! The agent, as a program of its own: `wrenn-agent` is started, and asked by RPC.

mod cli;
mod faults;
mod files;
mod rpc;
mod stage;
