//! The one place that starts other programs.
//!
//! Their output never reaches the terminal: it is kept, and its last lines travel in the
//! error when the program fails.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use crate::host_packages;

/// How many lines of a failed program's output the error carries.
const TAIL_LINES: usize = 12;

/// A program could not be started or failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{program} is not installed{}", package.map(|p| format!("; apt-get install {p}")).unwrap_or_default())]
    Missing {
        program: String,
        package: Option<&'static str>,
    },
    #[error("cannot start {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed ({status}):\n{output}")]
    Failed {
        program: String,
        status: ExitStatus,
        output: String,
    },
    #[error("{program} printed something that is not text")]
    NotText { program: String },
}

/// A program about to be run, with a clean environment for the things that change output.
#[derive(Debug)]
pub struct Program {
    name: String,
    command: Command,
}

impl Program {
    /// Prepares `name`, found on PATH or in the sbin folders, which a user's PATH may lack.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut command = Command::new(find(name).as_deref().unwrap_or(OsStr::new(name)));
        command
            .stdin(Stdio::null())
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC");
        Self {
            name: name.to_owned(),
            command,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Takes standard input from `input`.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Stdio>) -> Self {
        self.command.stdin(input);
        self
    }

    /// Runs it to its end and returns what it printed on standard output.
    ///
    /// # Errors
    /// It is not installed, does not start or fails.
    pub fn run(mut self) -> Result<Vec<u8>, CommandError> {
        let output = self
            .command
            .output()
            .map_err(|source| self.start_error(source))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(CommandError::Failed {
            program: self.name,
            status: output.status,
            output: tail(&output),
        })
    }

    /// As [`Self::run`], for programs that print text.
    ///
    /// # Errors
    /// As [`Self::run`], or the output is not UTF-8.
    pub fn text(self) -> Result<String, CommandError> {
        let program = self.name.clone();
        String::from_utf8(self.run()?).map_err(|_| CommandError::NotText { program })
    }

    /// The program as prepared, for a caller that does not wait for its end.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }

    fn start_error(&self, source: io::Error) -> CommandError {
        let program = self.name.clone();
        if source.kind() == io::ErrorKind::NotFound {
            CommandError::Missing {
                package: host_packages::providing(&program),
                program,
            }
        } else {
            CommandError::Start { program, source }
        }
    }
}

/// Where the program `name` lies, if it is installed.
#[must_use]
pub fn find(name: &str) -> Option<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .map(Into::into)
}

fn tail(output: &Output) -> String {
    let text = [&output.stderr[..], &output.stdout[..]]
        .into_iter()
        .map(String::from_utf8_lossy)
        .find(|text| !text.trim().is_empty())
        .unwrap_or_default()
        .into_owned();
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_carries_the_last_words() {
        let error = Program::new("sh")
            .args(["-c", "echo why >&2; exit 3"])
            .run()
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("why") && text.contains('3'), "{text}");
    }

    #[test]
    fn missing_program_names_its_package() {
        let error = Program {
            name: "mkfs.xfs".into(),
            command: Command::new("/nowhere/x"),
        }
        .run()
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "mkfs.xfs is not installed; apt-get install xfsprogs"
        );
    }
}
