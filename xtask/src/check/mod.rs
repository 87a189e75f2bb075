//! `cargo xtask check`: what must hold of the sources before they are shared.
//!
//! All checks run even when one fails, so one run tells everything there is to repair.

mod layers;
mod licences;
mod sources;
mod spdx;
mod unused;
mod words;

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::cli::CheckArgs;
use crate::process;
use crate::steps::{say, step};

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// rustfmt has nothing to change.
    Format,
    /// clippy has nothing to say, with the workspace's lints, on all targets.
    Lints,
    /// The documentation builds without a warning.
    Docs,
    /// Crates depend on each other only as ARCHITECTURE.md says.
    Layers,
    /// Every declared dependency is used.
    Unused,
    /// Every dependency has a licence of the list in deny.toml.
    Licences,
    /// No unfinished work, no path of one person's computer; long files are listed.
    Sources,
    /// Names of the newer crates are the field's standard terms.
    Words,
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Self::Format => "Format",
            Self::Lints => "Lints",
            Self::Docs => "Documentation",
            Self::Layers => "Layers",
            Self::Unused => "Unused dependencies",
            Self::Licences => "Licences",
            Self::Sources => "Sources",
            Self::Words => "Words",
        }
    }

    fn check(self) -> Result<()> {
        match self {
            Self::Format => process::run(process::cargo().args(["fmt", "--all", "--check"])),
            Self::Lints => process::run(process::cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--keep-going",
                "--",
                "--deny=warnings",
            ])),
            Self::Docs => process::run(
                process::cargo()
                    .args(["doc", "--workspace", "--no-deps"])
                    .env("RUSTDOCFLAGS", "--deny=warnings"),
            ),
            Self::Layers => layers::check(),
            Self::Unused => unused::check(),
            Self::Licences => licences::check(),
            Self::Sources => sources::check(),
            Self::Words => words::check(),
        }
    }
}

pub(crate) fn run(args: &CheckArgs) -> Result<ExitCode> {
    let kinds = if args.only.is_empty() {
        Kind::value_variants()
    } else {
        &args.only
    };
    let mut failed = Vec::new();
    for kind in kinds {
        if let Err(error) = step(kind.title(), || kind.check()) {
            eprintln!("{error:#}");
            failed.push(kind.title());
        }
    }
    if failed.is_empty() {
        say("check: ok");
        return Ok(ExitCode::SUCCESS);
    }
    say(format_args!("check: failed: {}", failed.join(", ")));
    Ok(ExitCode::FAILURE)
}

/// Turns a list of complaints into an error, one complaint a line.
fn no_complaints(complaints: &[String]) -> Result<()> {
    if complaints.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for complaint in complaints {
        // Writing to a String cannot fail.
        write!(text, "\n  {complaint}").ok();
    }
    bail!("{text}")
}
