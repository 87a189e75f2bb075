//! Running other programs: the one home of `Command` here.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// A command that reads nothing from our standard input.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// The cargo that runs us, or the one on PATH.
pub(crate) fn cargo() -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // It told us about this package. Build scripts take that for a change, and what depends on
    // them would be compiled again each time that people call cargo themselves.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            cargo.env_remove(&*name);
        }
    }
    cargo
}

/// Whether `cargo NAME` exists.
pub(crate) fn has_cargo_tool(name: &str) -> bool {
    let mut probe = cargo();
    probe
        .args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// Runs a command with our own output and expects success.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    expect(command, status)
}

/// Runs a command and returns its standard output; its standard error is ours.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    expect(command, output.status)?;
    String::from_utf8(output.stdout)
        .with_context(|| format!("output of {} is not UTF-8", shown(command)))
}

/// Runs a command, shows all that it prints on standard error and hands each line over.
///
/// The two outputs of the command share one pipe, which keeps their order.
pub(crate) fn watch(command: &mut Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let second = writer.try_clone().context("cannot make a pipe")?;
    let mut child = command
        .stdout(writer)
        .stderr(second)
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    // The command still holds the writing ends: without this the pipe never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while reader
        .read_until(b'\n', &mut bytes)
        .context("cannot read a command's output")?
        > 0
    {
        std::io::stderr()
            .write_all(&bytes)
            .context("cannot write to standard error")?;
        line(&without_colours(&String::from_utf8_lossy(&bytes)));
        bytes.clear();
    }
    child
        .wait()
        .with_context(|| format!("cannot wait for {}", shown(command)))
}

fn expect(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// The command as a person would type it, without the folder of its program.
pub(crate) fn typed(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let words = std::iter::once(name).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    // Only a zero byte cannot be quoted, and no command has one.
    shlex::try_join(words.iter().map(AsRef::as_ref)).unwrap_or_default()
}

/// The command for an error's sentence, shortened.
fn shown(command: &Command) -> String {
    let typed = typed(command);
    match typed.char_indices().nth(100) {
        Some((end, _)) => format!("`{} …`", &typed[..end]),
        None => format!("`{typed}`"),
    }
}

/// Takes terminal colour sequences (`ESC [ … letter`) and the line's end away.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.trim_end().chars();
    while let Some(character) = characters.next() {
        if character != '\u{1b}' {
            plain.push(character);
        } else if characters.next() == Some('[') {
            characters.by_ref().find(char::is_ascii_alphabetic);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_sees_both_outputs_in_order_and_the_exit_code() {
        let mut lines = Vec::new();
        let mut shell = command("sh");
        shell.args(["-c", "echo one; echo two >&2; printf three; exit 3"]);
        let status = watch(&mut shell, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn failure_names_the_command() {
        let error = run(command("sh").args(["-c", "exit 9"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c 'exit 9'` failed (exit status: 9)"
        );
        let error = run(&mut command("/nonexistent/program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `program`");
    }

    #[test]
    fn colours_are_taken_away() {
        assert_eq!(
            without_colours("\u{1b}[1;32m3 passed\u{1b}[0m, none\n"),
            "3 passed, none"
        );
    }
}
