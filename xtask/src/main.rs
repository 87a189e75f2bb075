//! The workspace's own commands: `cargo xtask setup|kernel|demo|test|e2e|bench|check`.
//!
//! ```text
//! cargo xtask ──▶ xtask             small: compiled in seconds, runs cargo and counts
//!                   │ builds, then starts
//!                   ▼
//!                 xtask-provision   links the engines: packages, guest images, machine,
//!                                   programs run where virtual machines can run
//! ```
//!
//! The split keeps the first minute of a fresh clone from being a silent one, and an
//! edit of an engine from recompiling the tool that checks it.

mod bench;
mod build;
mod check;
mod cli;
mod clients;
mod demo;
mod e2e;
mod kernel;
mod process;
mod provision;
mod setup;
mod steps;
mod tally;
mod tests;
mod workspace;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Kernel(args) => kernel::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => tests::run(&args),
        Command::E2e(args) => e2e::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Check(args) => check::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
