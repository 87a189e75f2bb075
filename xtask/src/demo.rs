//! `cargo xtask demo`: a person's first look at a microVM doing real work.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::build::Programs;
use crate::cli::DemoArgs;
use crate::steps::{say, seconds, step};
use crate::{process, setup};

/// One thing to show: what it is, the options and command for `wrenn run`, and what the
/// command must answer.
struct Scene {
    title: &'static str,
    options: &'static [&'static str],
    command: &'static [&'static str],
    exit_code: i32,
    answer: fn(&str) -> bool,
}

const SCENES: &[Scene] = &[
    Scene {
        title: "A kernel of its own",
        options: &[],
        command: &["uname", "-srn"],
        exit_code: 0,
        answer: |out| out.starts_with("Linux sb"),
    },
    Scene {
        title: "Python, with an environment variable and a working directory",
        options: &["--env", "NAME=Wrenn", "--cwd", "/tmp"],
        command: &[
            "python3",
            "-c",
            "import os; print(f\"{os.environ['NAME']} in {os.getcwd()}:\", 2**64)",
        ],
        exit_code: 0,
        answer: |out| out.trim() == "Wrenn in /tmp: 18446744073709551616",
    },
    Scene {
        title: "Standard error and the exit code come through",
        options: &[],
        command: &["sh", "-c", "echo out; echo err >&2; exit 3"],
        exit_code: 3,
        answer: |out| out == "out\n",
    },
    Scene {
        title: "Two CPUs and the memory asked for",
        options: &["--vcpus", "2", "--memory", "384M"],
        command: &[
            "sh",
            "-c",
            "echo $(nproc) CPUs; grep MemTotal /proc/meminfo",
        ],
        exit_code: 0,
        answer: |out| out.starts_with("2 CPUs\nMemTotal:"),
    },
];

pub(crate) fn run(_args: &DemoArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let programs = setup::ensure()?;
    for scene in SCENES {
        step(scene.title, || show(&programs, scene))?;
    }
    eprintln!("── everything: {}", seconds(start.elapsed()));
    say("demo: ok");
    Ok(ExitCode::SUCCESS)
}

fn show(programs: &Programs, scene: &Scene) -> Result<()> {
    let mut wrenn = process::command(&programs.wrenn);
    wrenn
        .arg("run")
        .args(scene.options)
        .arg("--")
        .args(scene.command);
    eprintln!("$ {}", process::typed(&wrenn));
    let output = wrenn
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start wrenn")?;
    let out = String::from_utf8_lossy(&output.stdout);
    eprint!("{out}");
    if output.status.code() != Some(scene.exit_code) {
        bail!(
            "the command ended with {} instead of exit code {}",
            output.status,
            scene.exit_code
        );
    }
    if !(scene.answer)(&out) {
        bail!("the command printed something else than expected: {out:?}");
    }
    Ok(())
}
