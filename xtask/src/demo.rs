//! `cargo xtask demo`: a person's first look: `wrenn up`, and a sandbox in use through it.

use std::io::Write as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cli::DemoArgs;
use crate::steps::{say, seconds, step};
use crate::{process, setup};

/// A program that is copied into the sandbox and run there.
const SCRIPT: &str =
    "import platform\nprint('Python', platform.python_version(), 'in', platform.node())\n";

pub(crate) fn run(_args: &DemoArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let programs = setup::ensure()?;
    let wrenn = Wrenn(&programs.wrenn);
    let started = step("A control plane, and an agent beside it", || wrenn.up())?;
    let shown = show(&wrenn);
    if started {
        step("Server and agent end; sandboxes would go on", || {
            wrenn.run(&["down"]).map(drop)
        })?;
    } else {
        eprintln!("── wrenn up ran before, and is left running");
    }
    shown?;
    eprintln!("── everything: {}", seconds(start.elapsed()));
    say("demo: ok");
    Ok(ExitCode::SUCCESS)
}

/// Shows one sandbox at work. Whatever fails, nothing of it stays.
fn show(wrenn: &Wrenn) -> Result<()> {
    let id = step("A sandbox: a virtual machine with its own kernel", || {
        wrenn.run(&["sandbox", "create", "--timeout", "10m"])
    })?;
    let id = id.trim().to_owned();
    let mut sandboxes = vec![id.clone()];
    let mut snapshots = Vec::new();
    let shown = use_sandbox(wrenn, &id, &mut sandboxes, &mut snapshots);
    step("Everything is destroyed", || {
        for snapshot in &snapshots {
            wrenn.run(&["snapshot", "delete", snapshot])?;
        }
        let mut destroy = vec!["sandbox", "destroy"];
        destroy.extend(sandboxes.iter().map(String::as_str));
        wrenn.run(&destroy).map(drop)
    })?;
    shown
}

fn use_sandbox(
    wrenn: &Wrenn,
    id: &str,
    sandboxes: &mut Vec<String>,
    snapshots: &mut Vec<String>,
) -> Result<()> {
    step("A command, its output and its exit code", || {
        wrenn.expect(&["sandbox", "exec", id, "--", "uname", "-sr"], "Linux ")?;
        wrenn.expect(
            &["sandbox", "exec", id, "--", "python3", "-c", "print(2**64)"],
            "18446744073709551616",
        )?;
        wrenn.exit_code(&["sandbox", "exec", id, "--", "sh", "-c", "exit 3"], 3)
    })?;
    step("A file goes in, and is run", || {
        let mut file = tempfile()?;
        file.1
            .write_all(SCRIPT.as_bytes())
            .context("cannot write a file")?;
        let target = format!("{id}:/tmp/hello.py");
        let copied = wrenn.run(&["sandbox", "cp", &file.0, &target]);
        // It is small, and lies in the directory of temporary files.
        drop(std::fs::remove_file(&file.0));
        copied?;
        wrenn.expect(
            &["sandbox", "exec", id, "--", "python3", "/tmp/hello.py"],
            "Python 3",
        )
    })?;
    step("It is paused to disk, and goes on", || {
        let count = "sleep 1000 & echo $! > /tmp/pid; cat /proc/sys/kernel/random/boot_id";
        let before = wrenn.run(&["sandbox", "exec", id, "--", "sh", "-c", count])?;
        wrenn.run(&["sandbox", "pause", id])?;
        wrenn.expect(&["sandbox", "get", id], "paused")?;
        wrenn.run(&["sandbox", "resume", id])?;
        let still = "kill -0 $(cat /tmp/pid) && echo its processes are there";
        wrenn.expect(
            &["sandbox", "exec", id, "--", "sh", "-c", still],
            "its processes are there",
        )?;
        if before.trim().is_empty() {
            bail!("the guest has no boot id");
        }
        Ok(())
    })?;
    step("A snapshot of it is a template", || {
        let snapshot = wrenn.run(&["snapshot", "create", id])?;
        let snapshot = snapshot.trim().to_owned();
        snapshots.push(snapshot.clone());
        let child = wrenn.run(&["sandbox", "create", "--template", &snapshot])?;
        let child = child.trim().to_owned();
        sandboxes.push(child.clone());
        wrenn.expect(
            &["sandbox", "exec", &child, "--", "python3", "/tmp/hello.py"],
            "Python 3",
        )
    })
}

/// A new file among the temporary ones.
fn tempfile() -> Result<(String, std::fs::File)> {
    let path = std::env::temp_dir().join(format!("wrenn-demo-{}.py", std::process::id()));
    let file = std::fs::File::create(&path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    Ok((path.display().to_string(), file))
}

/// The program, whose commands are shown as they would be typed.
struct Wrenn<'a>(&'a Path);

impl Wrenn<'_> {
    /// Starts server and agent, unless they run. Says whether they were started.
    fn up(&self) -> Result<bool> {
        let runs = process::command(self.0)
            .args(["template", "list", "--quiet"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("cannot start wrenn")?;
        self.run(&["up", "--detach"])?;
        Ok(!runs.success())
    }

    /// Runs a command that must succeed, and gives what it prints.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let (code, out) = self.start(arguments)?;
        if code != Some(0) {
            bail!("the command ended with exit code {code:?}");
        }
        Ok(out)
    }

    /// Runs a command that must print these words.
    fn expect(&self, arguments: &[&str], words: &str) -> Result<()> {
        let out = self.run(arguments)?;
        if !out.contains(words) {
            bail!("the command printed {out:?}, and not '{words}'");
        }
        Ok(())
    }

    fn exit_code(&self, arguments: &[&str], wanted: i32) -> Result<()> {
        let (code, _) = self.start(arguments)?;
        if code != Some(wanted) {
            bail!("the command ended with exit code {code:?} instead of {wanted}");
        }
        Ok(())
    }

    fn start(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let mut command = process::command(self.0);
        command.args(arguments);
        eprintln!(
            "$ wrenn {}",
            process::typed(&command)
                .split_once(' ')
                .map_or("", |(_, rest)| rest)
        );
        let output = command
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start wrenn")?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        eprint!("{out}");
        Ok((output.status.code(), out))
    }
}
