//! One file per sub-command.

#[cfg(feature = "host")]
pub mod agent;
pub mod completions;
#[cfg(feature = "host")]
pub mod doctor;
#[cfg(feature = "host")]
pub mod down;
#[cfg(feature = "host")]
pub mod machine;
#[cfg(feature = "host")]
pub mod run;
pub mod sandbox;
pub mod snapshot;
pub mod template;
#[cfg(feature = "host")]
pub mod up;

use std::process::ExitCode;

use crate::GlobalArgs;

/// The sub-commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Start a control plane, and an agent beside it.
    #[cfg(feature = "host")]
    Up(Box<up::Args>),
    /// End what `wrenn up` started, never the sandboxes.
    #[cfg(feature = "host")]
    Down(down::Args),
    /// Sandboxes of a server: create, use, pause, resume, fork, destroy.
    Sandbox(Box<sandbox::Args>),
    /// Snapshots, of which sandboxes can be created.
    Snapshot(snapshot::Args),
    /// Templates that sandboxes are made from.
    Template(template::Args),
    /// Run a command in a throw-away sandbox of this host, without a server.
    #[cfg(feature = "host")]
    Run(run::Args),
    /// Say what this host can run, and how to mend what it can't.
    #[cfg(feature = "host")]
    Doctor(doctor::Args),
    /// Talk to the agent of a host: for a look inside, and for debugging.
    #[cfg(feature = "host")]
    Agent(agent::Args),
    /// The QEMU machine that stands in for a host without usable KVM or device mapper.
    #[cfg(feature = "host")]
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
        #[cfg(feature = "host")]
        Command::Up(args) => up::run(&global, *args).await,
        #[cfg(feature = "host")]
        Command::Down(args) => down::run(&global, args).await,
        Command::Sandbox(args) => sandbox::run(*args).await,
        Command::Snapshot(args) => snapshot::run(&global, args).await,
        Command::Template(args) => template::run(&global, args).await,
        #[cfg(feature = "host")]
        Command::Run(args) => run::run(&global, args).await,
        #[cfg(feature = "host")]
        Command::Doctor(args) => doctor::run(&global, args).await,
        #[cfg(feature = "host")]
        Command::Agent(args) => agent::run(&global.root, args).await,
        #[cfg(feature = "host")]
        Command::Machine(args) => machine::run(&global, args).await,
        Command::Completions(args) => completions::run(&args),
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
