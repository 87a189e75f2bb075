//! `cargo xtask bench`: figures, each beside a baseline of the same run.
//!
//! A benchmark is a `[[bench]]` target of wrenn-cli. It prints one JSON array of records
//! (see `wrenn-bench`) to standard output and its progress to standard error.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use wrenn_bench::Record;

use crate::build;
use crate::cli::BenchArgs;
use crate::provision::Run;
use crate::steps::{say, step};
use crate::workspace::Workspace;
use crate::{process, setup};

/// Variables by which people say how much is measured; they reach the machine, too.
const PASSED_ON: [&str; 2] = ["WRENN_BENCH_ROUNDS", "WRENN_BENCH_MEMORY_MIB"];

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let baseline = args.vmm.as_deref().map(build::given).transpose()?;
    let names = chosen(args.name.as_deref())?;
    let programs = setup::ensure()?;
    let built = step("Building benchmarks", || {
        let mut cargo = build::optimised(&["bench", "--no-run"]);
        for name in &names {
            cargo.args(["--bench", name]);
        }
        build::executables(&mut cargo)
    })?;
    let mut records = Vec::new();
    for name in &names {
        let program = build::find(&built, name)?;
        records.extend(step(&format!("Benchmark {name}"), || {
            let mut run = Run::new(program)
                .file("WRENN_E2E_WRENN", &programs.wrenn)
                .file("WRENN_PAGER", &programs.pager)
                .file("WRENN_VMM", &programs.vmm)
                .pass_on(&PASSED_ON);
            if let Some(baseline) = &baseline {
                run = run.file("WRENN_BASELINE_VMM", baseline);
            }
            measured(&process::output(
                run.command(&programs).stderr(Stdio::inherit()),
            )?)
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

/// The benchmark targets to run: the one that is asked for, or all.
fn chosen(name: Option<&str>) -> Result<Vec<String>> {
    let workspace = Workspace::load()?;
    let members = workspace.members();
    let cli = members
        .get("wrenn-cli")
        .context("the workspace has no wrenn-cli")?;
    let all: Vec<String> = cli.targets_of_kind("bench").map(str::to_owned).collect();
    match name {
        None if all.is_empty() => bail!("there are no benchmarks"),
        None => Ok(all),
        Some(name) if all.iter().any(|own| own == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!(
            "there is no benchmark {name}; there are: {}",
            all.join(", ")
        ),
    }
}

fn measured(output: &str) -> Result<Vec<Record>> {
    serde_json::from_str(output).with_context(|| {
        format!("the benchmark printed something else than an array of records: {output:?}")
    })
}
