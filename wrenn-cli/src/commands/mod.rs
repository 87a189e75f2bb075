//! One file per sub-command.

pub mod agent;
pub mod completions;
pub mod doctor;
pub mod machine;
pub mod run;
pub mod snapshot;
pub mod template;

use std::process::ExitCode;

use crate::GlobalArgs;

/// The sub-commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run a command in a throw-away sandbox.
    Run(run::Args),
    /// Snapshots and the builds that they are made of.
    Snapshot(snapshot::Args),
    /// What sandboxes are made from: build, list, delete.
    Template(template::Args),
    /// Say what this host can run, and how to mend what it can't.
    Doctor(doctor::Args),
    /// Talk to the agent of a host: for a look inside, and for debugging.
    Agent(agent::Args),
    /// The QEMU machine that stands in for a host without usable KVM or device mapper.
    Machine(machine::Args),
    /// Print the completion script of a shell.
    Completions(completions::Args),
}

/// A mistake in how the program was called: exit code 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Runs one sub-command to its end.
///
/// # Errors
/// Whatever stopped it, ready to be shown to a person.
pub async fn dispatch(global: GlobalArgs, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(&global, args).await,
        Command::Snapshot(args) => snapshot::run(&global, args).await,
        Command::Template(args) => template::run(&global, args).await,
        Command::Doctor(args) => doctor::run(&global, args).await,
        Command::Agent(args) => agent::run(&global.root, args).await,
        Command::Completions(args) => Ok(completions::run(&args)),
        Command::Machine(args) => machine::run(&global, args).await,
    }
}

/// The exit code that an error maps to.
pub fn exit_code_of(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<UsageError>().is_some() {
        2
    } else {
        1
    }
}
