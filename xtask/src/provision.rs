//! Calling `xtask-provision`, the program of ours that links the engines.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::Programs;
use crate::process;

/// Makes packages, guest images and the machine ready.
pub(crate) fn setup(programs: &Programs, plan_only: bool) -> Command {
    let mut command = process::command(&programs.provision);
    command.arg("setup");
    if plan_only {
        command.arg("--plan");
    }
    command
}

/// Builds the guest kernel of our own and puts it where microVMs run.
pub(crate) fn kernel(programs: &Programs, plan_only: bool) -> Command {
    let mut command = process::command(&programs.provision);
    command.arg("kernel");
    if plan_only {
        command.arg("--plan");
    }
    command
}

/// A client's test suite, still to be named, against the daemon of a microVM.
pub(crate) fn clients(programs: &Programs, vmm: &Path) -> Command {
    let mut command = process::command(&programs.provision);
    command
        .arg("clients")
        .arg("--expose")
        .arg(&programs.expose_port)
        .arg("--vmm")
        .arg(vmm)
        .arg("--");
    command
}

/// A program to run where virtual machines can run, with the files it is told of.
#[derive(Debug)]
pub(crate) struct Run {
    program: PathBuf,
    files: Vec<(&'static str, PathBuf)>,
    variables: Vec<(&'static str, OsString)>,
    arguments: Vec<OsString>,
}

impl Run {
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            files: Vec::new(),
            variables: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// Takes a file along. There, the environment variable holds its path.
    pub(crate) fn file(mut self, variable: &'static str, path: &Path) -> Self {
        self.files.push((variable, path.to_owned()));
        self
    }

    /// Passes environment variables on that are set here.
    pub(crate) fn pass_on(mut self, names: &[&'static str]) -> Self {
        let set = names
            .iter()
            .filter_map(|name| Some((*name, std::env::var_os(name)?)));
        self.variables.extend(set);
        self
    }

    /// Sets an environment variable there.
    pub(crate) fn variable(mut self, variable: &'static str, value: &str) -> Self {
        self.variables.push((variable, value.into()));
        self
    }

    pub(crate) fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// The command that runs it on this host, or in the machine where this host can't.
    pub(crate) fn command(self, programs: &Programs) -> Command {
        let mut command = process::command(&programs.provision);
        command.arg("run");
        let pair = |variable: &str, value: &OsStr| {
            let mut pair = OsString::from(variable);
            pair.push("=");
            pair.push(value);
            pair
        };
        for (variable, path) in self.files {
            command.arg("--file").arg(pair(variable, path.as_os_str()));
        }
        for (variable, value) in self.variables {
            command.arg("--env").arg(pair(variable, &value));
        }
        command.arg("--").arg(self.program).args(self.arguments);
        command
    }
}
