//! Building our programs and finding what cargo made.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process;

/// What cargo is told to select in every optimised build. It settles the features of shared
/// dependencies for all of a selection together, so with the same one each time, programs,
/// suite, benchmarks and examples share what is compiled.
const PACKAGES: [&str; 9] = [
    "wrenn-cli",
    "wrenn-agent",
    "wrenn-core",
    "wrenn-vmm",
    "wrenn-envd",
    "wrenn-machine",
    "wrenn-server",
    "wrenn-examples",
    "xtask-provision",
];

/// A building cargo command for optimised programs, whose targets are still to be named.
pub(crate) fn optimised(words: &[&str]) -> std::process::Command {
    let mut cargo = process::cargo();
    cargo.args(words);
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    cargo
}

/// Our programs, built for use: optimised and static.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) wrenn: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) vmm: PathBuf,
    pub(crate) pager: PathBuf,
    pub(crate) provision: PathBuf,
    /// The example that makes a microVM's port reachable.
    pub(crate) expose_port: PathBuf,
}

impl Programs {
    /// Builds what has changed. With an example in the selection, cargo counts the features that
    /// tests ask of shared dependencies in; without one, the suite would compile them again, and
    /// the server with them.
    pub(crate) fn build() -> Result<Self> {
        let words = ["build", "--release", "--bins", "--example", "expose_port"];
        let made = executables(&mut optimised(&words))?;
        Ok(Self {
            wrenn: find(&made, "wrenn")?,
            agent: find(&made, "wrenn-agent")?,
            vmm: find(&made, "wrenn-vmm")?,
            pager: find(&made, "wrenn-pager")?,
            provision: find(&made, "xtask-provision")?,
            expose_port: find(&made, "expose_port")?,
        })
    }
}

/// A program that cargo made, and the target it was made from.
#[derive(Debug)]
pub(crate) struct Executable {
    pub(crate) target: String,
    pub(crate) path: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    target: Option<MessageTarget>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct MessageTarget {
    name: String,
}

/// Runs a building cargo command and collects the programs it made or found up to date.
pub(crate) fn executables(cargo: &mut std::process::Command) -> Result<Vec<Executable>> {
    cargo.arg("--message-format=json-render-diagnostics");
    let messages = process::output(cargo)?;
    let mut made = Vec::new();
    for line in messages.lines() {
        let message: Message =
            serde_json::from_str(line).context("cannot read cargo's messages")?;
        if let Message {
            target: Some(target),
            executable: Some(path),
        } = message
        {
            made.push(Executable {
                target: target.name,
                path,
            });
        }
    }
    Ok(made)
}

/// The program of one target.
pub(crate) fn find(made: &[Executable], target: &str) -> Result<PathBuf> {
    let Some(executable) = made.iter().find(|executable| executable.target == target) else {
        bail!("cargo made no program named {target}");
    };
    Ok(executable.path.clone())
}

/// Checks a program that the user names, and makes its path absolute.
pub(crate) fn given(path: &Path) -> Result<PathBuf> {
    let path = path
        .canonicalize()
        .with_context(|| format!("there is no program at {}", path.display()))?;
    if !path.is_file() {
        bail!("{} is not a program", path.display());
    }
    Ok(path)
}
