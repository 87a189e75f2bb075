//! `cargo xtask bench`: figures, each beside a baseline of the same run.
//!
//! A benchmark is a `[[bench]]` target of wrenn-cli, which runs where virtual machines can run,
//! or of wrenn-server, which runs on this host in front of a fake one. It prints one JSON array
//! of records (see `wrenn-bench`) to standard output and its progress to standard error.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use wrenn_bench::Record;

use crate::build::{self, Programs};
use crate::cli::BenchArgs;
use crate::provision::Run;
use crate::steps::{say, step};
use crate::workspace::Workspace;
use crate::{process, setup};

/// Variables by which people say how much is measured; they reach the machine, too.
const PASSED_ON: [&str; 2] = ["WRENN_BENCH_ROUNDS", "WRENN_BENCH_MEMORY_MIB"];

/// Where a benchmark runs, which its crate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Where virtual machines can run.
    Machine,
    /// On this host, in front of a fake host.
    Native,
}

/// The crates that have benchmarks.
const CRATES: [(&str, Place); 2] = [
    ("wrenn-cli", Place::Machine),
    ("wrenn-server", Place::Native),
];

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let baseline = args.vmm.as_deref().map(build::given).transpose()?;
    let chosen = chosen(args.name.as_deref())?;
    let needs_machine = chosen.iter().any(|(_, place)| *place == Place::Machine);
    let programs = needs_machine.then(setup::ensure).transpose()?;
    let built = step("Building benchmarks", || {
        let mut cargo = build::optimised(&["bench", "--no-run"]);
        for (name, _) in &chosen {
            cargo.args(["--bench", name]);
        }
        build::executables(&mut cargo)
    })?;
    let mut records = Vec::new();
    for (name, place) in &chosen {
        let program = build::find(&built, name)?;
        records.extend(step(&format!("Benchmark {name}"), || {
            let mut command = match (place, &programs) {
                (Place::Machine, Some(programs)) => {
                    in_machine(program, programs, baseline.as_deref())
                }
                _ => native(&program)?,
            };
            measured(&process::output(command.stderr(Stdio::inherit()))?)
        })?);
    }
    if let Some(file) = &args.json {
        let mut json = serde_json::to_string_pretty(&records).context("cannot write records")?;
        json.push('\n');
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    say(wrenn_bench::table(&records).trim_end());
    Ok(ExitCode::SUCCESS)
}

fn in_machine(program: PathBuf, programs: &Programs, baseline: Option<&Path>) -> Command {
    let mut run = Run::new(program)
        .file("WRENN_E2E_WRENN", &programs.wrenn)
        .file("WRENN_PAGER", &programs.pager)
        .file("WRENN_VMM", &programs.vmm)
        .pass_on(&PASSED_ON);
    if let Some(baseline) = baseline {
        run = run.file("WRENN_BASELINE_VMM", baseline);
    }
    run.command(programs)
}

/// A benchmark of this host. Its guest daemons are optimised, too.
fn native(program: &Path) -> Result<Command> {
    let made = build::executables(&mut build::optimised(&[
        "build",
        "--release",
        "--bin",
        "wrenn-envd",
    ]))?;
    let mut command = process::command(program);
    command.env("WRENN_ENVD", build::find(&made, "wrenn-envd")?);
    Ok(command)
}

/// The benchmark targets to run: the one that is asked for, or all.
fn chosen(name: Option<&str>) -> Result<Vec<(String, Place)>> {
    let workspace = Workspace::load()?;
    let members = workspace.members();
    let mut all = Vec::new();
    for (member, place) in CRATES {
        let member = members
            .get(member)
            .with_context(|| format!("the workspace has no {member}"))?;
        let targets = member.targets_of_kind("bench");
        all.extend(targets.map(|target| (target.to_owned(), place)));
    }
    match name {
        None if all.is_empty() => bail!("there are no benchmarks"),
        None => Ok(all),
        Some(name) => match all.iter().position(|(own, _)| own == name) {
            Some(at) => Ok(vec![all.swap_remove(at)]),
            None => {
                let names: Vec<_> = all.into_iter().map(|(name, _)| name).collect();
                bail!(
                    "there is no benchmark {name}; there are: {}",
                    names.join(", ")
                )
            }
        },
    }
}

fn measured(output: &str) -> Result<Vec<Record>> {
    serde_json::from_str(output).with_context(|| {
        format!("the benchmark printed something else than an array of records: {output:?}")
    })
}
