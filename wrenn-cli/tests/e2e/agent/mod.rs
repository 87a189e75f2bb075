//! The agent and what it is made of: engines through the library, and `wrenn-agent` itself,
//! started and asked by RPC.

mod chaos;
mod cli;
mod disk;
mod faults;
mod files;
mod full_host;
mod jail;
mod neighbour;
mod rate_limits;
mod rpc;
pub(crate) mod stage;
mod start_command;
