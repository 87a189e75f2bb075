//! Runs a static program, with files that it needs, where microVMs can run.
//!
//! Its output streams through as it comes, its exit code becomes ours, and Ctrl-C reaches it.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use wrenn_core::guest::{Command, GuestProcess, ProcessEvent, Signal};
use wrenn_machine::MachineClient;

use crate::RunArgs;
use crate::place::{self, Place};
use crate::report::Report;

/// Where pushed files lie in the machine: beside each other, as one build leaves them, and
/// not on PATH, where another VMM would be found by everybody.
const FOLDER: &str = "/usr/local/lib/xtask";

pub(crate) async fn run(root: &Path, args: RunArgs) -> Result<ExitCode> {
    match place::ready(root, &Arc::new(Report::default())).await? {
        Place::Host => run_here(args).await,
        Place::Machine(machine) => run_in(&machine, args).await,
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "starting a program is what this file is for"
)]
async fn run_here(args: RunArgs) -> Result<ExitCode> {
    let program = args
        .program
        .canonicalize()
        .context("cannot find the program")?;
    let status = tokio::process::Command::new(&program)
        .args(args.arguments)
        .envs(args.files)
        .envs(args.variables)
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("cannot start {}", program.display()))?;
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

async fn run_in(machine: &MachineClient, args: RunArgs) -> Result<ExitCode> {
    let mut command = Command::new(push(machine, &args.program).await?);
    for (variable, path) in &args.files {
        command = command.env(variable, push(machine, path).await?);
    }
    for (variable, value) in args.variables {
        command = command.env(variable, value);
    }
    for argument in args.arguments {
        let argument = argument.into_string();
        let argument = argument
            .ok()
            .context("an argument is not UTF-8, which the machine needs")?;
        command = command.args([argument]);
    }
    let mut process = machine
        .start(command)
        .await
        .context("cannot start the program")?;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match next(machine, &mut process).await? {
            ProcessEvent::Stdout(bytes) | ProcessEvent::Pty(bytes) => {
                pass_on(&mut stdout, &bytes).await?;
            }
            ProcessEvent::Stderr(bytes) => pass_on(&mut stderr, &bytes).await?,
            ProcessEvent::Exit(status) => {
                if let Some(error) = &status.error {
                    eprintln!("the program in the machine: {error}");
                }
                return Ok(ExitCode::from(status.shell_code()));
            }
        }
    }
}

/// Waits for what the program says next, and passes Ctrl-C on to it meanwhile.
async fn next(machine: &MachineClient, process: &mut GuestProcess) -> Result<ProcessEvent> {
    let pid = process.pid();
    loop {
        tokio::select! {
            event = process.next() => return event.context("lost the program in the machine"),
            pressed = tokio::signal::ctrl_c() => {
                pressed.context("cannot wait for Ctrl-C")?;
                let sent = machine.guest().signal(pid, Signal::SIGNAL_SIGTERM).await;
                sent.context("cannot end the program in the machine")?;
            }
        }
    }
}

async fn pass_on(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    out.write_all(bytes)
        .await
        .context("cannot write the program's output")?;
    out.flush()
        .await
        .context("cannot write the program's output")
}

/// Pushes a program or file unless it is there already, and returns its path in the machine.
pub(crate) async fn push(machine: &MachineClient, local: &Path) -> Result<String> {
    let name = local.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} has no plain name", local.display()))?;
    let remote = format!("{FOLDER}/{}", without_hash(name));
    machine
        .push(local, &remote, 0o755)
        .await
        .with_context(|| format!("cannot push {} into the machine", local.display()))?;
    Ok(remote)
}

/// cargo names a test program `e2e-0123456789abcdef`, differently for each build. In the
/// machine, the next one takes the place of the last.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((plain, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            plain
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cargos_hash_is_taken_off() {
        assert_eq!(without_hash("e2e-0123456789abcdef"), "e2e");
        assert_eq!(without_hash("wrenn-vmm"), "wrenn-vmm");
        assert_eq!(without_hash("a-0123456789abcdeg"), "a-0123456789abcdeg");
    }
}
