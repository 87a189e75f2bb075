//! `cargo xtask test`: every test there is, counted.
//!
//! ```text
//! unit, integration ── nextest, or cargo test where it isn't installed ─┐
//! examples in the documentation ── cargo test --doc ────────────────────┼──▶ one tally
//! an existing client's suite ── against the daemon in a microVM ────────┤
//! end-to-end ── in the machine where this host can't run VMs ───────────┘
//! ```

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::cli::TestArgs;
use crate::steps::{say, step};
use crate::tally::Tally;
use crate::{clients, e2e, process, setup};

pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    let mut total = Tally::default();
    let programs = if args.no_e2e {
        None
    } else {
        Some(setup::ensure()?)
    };
    total += step("Unit and integration tests", || {
        counted(&mut workspace_tests())
    })?;
    total += step("Examples in the documentation", || {
        // What the generator writes into its documentation are no programs.
        let all = ["test", "--workspace", "--doc", "--exclude", "wrenn-proto"];
        counted(process::cargo().args(all))
    })?;
    if let Some(programs) = programs {
        total += e2e::suite(&programs, &e2e::Chosen::default())?;
        total += clients::in_microvm(&programs, None)?;
    }
    say(total);
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// nextest runs each test in a process of its own and ends one that hangs. cargo's own
/// runner does without, and is always there.
fn workspace_tests() -> Command {
    let mut cargo = process::cargo();
    if process::has_cargo_tool("nextest") {
        cargo.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        eprintln!("cargo-nextest is not installed: using cargo test, which ends no hanging test");
        cargo.args([
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--examples",
        ]);
        cargo.arg("--no-fail-fast");
    }
    cargo
}

/// Runs a test runner and adds up what it reports.
pub(crate) fn counted(runner: &mut Command) -> Result<Tally> {
    let mut tally = Tally::default();
    let status = process::watch(runner, |line| {
        if let Some(counts) = Tally::of_line(line) {
            tally += counts;
        }
    })?;
    Ok(tally.with_exit(status.success()))
}
