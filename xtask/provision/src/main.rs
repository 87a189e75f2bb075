//! The part of xtask that links the engines. `cargo xtask` builds and starts it; people
//! need not.
//!
//! ```text
//! setup   packages ─▶ can this host run microVMs? ─┬─ yes ─▶ guest images into the root directory
//!                                                  └─ no ──▶ the machine, with the images in it
//! kernel  packages ─▶ compilation, or the cache ─▶ the root directory of the host or machine
//! run     a static program and its files ─┬─▶ started here
//!                                         └─▶ pushed into the machine and started there
//! clients a microVM's daemon ◀─ relay ◀─ a client's test suite in a namespace of its own
//! ```

mod clients;
mod kernel;
mod packages;
mod place;
mod report;
mod run;
mod setup;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

/// Packages, guest images, the machine, and programs run where microVMs can run.
#[derive(Debug, Parser)]
struct Cli {
    /// Directory that holds kernels, templates and sandboxes on this host.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "AGENT_FILES_ROOTDIR",
        default_value = "/var/lib/wrenn"
    )]
    root: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes packages, guest images and the machine ready.
    Setup(SetupArgs),
    /// Builds the guest kernel of our own and puts it where microVMs run.
    Kernel(KernelArgs),
    /// Runs a static program on this host, or in the machine where this host can't.
    Run(RunArgs),
    /// Runs a client's test suite against the daemon of a microVM.
    Clients(ClientsArgs),
}

#[derive(Debug, Args)]
struct SetupArgs {
    /// Say what is missing and change nothing.
    #[arg(long)]
    plan: bool,
}

#[derive(Debug, Args)]
struct KernelArgs {
    /// Say what is missing and change nothing.
    #[arg(long)]
    plan: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A file to take along. There, the variable holds its path.
    #[arg(long = "file", value_name = "VARIABLE=PATH", value_parser = variable_and_path)]
    files: Vec<(String, PathBuf)>,
    /// A variable of the program's environment.
    #[arg(long = "env", value_name = "VARIABLE=VALUE", value_parser = variable_and_value)]
    variables: Vec<(String, String)>,
    /// The program.
    program: PathBuf,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

#[derive(Debug, Args)]
struct ClientsArgs {
    /// The program that boots a microVM and exposes a port of it.
    #[arg(long, value_name = "PATH")]
    expose: PathBuf,
    /// The program that runs the VM.
    #[arg(long, value_name = "PATH")]
    vmm: PathBuf,
    /// The microVM's template.
    #[arg(long, value_name = "NAME", default_value = "base")]
    template: String,
    /// The suite and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

fn variable_and_path(text: &str) -> Result<(String, PathBuf), String> {
    variable_and_value(text).map(|(variable, path)| (variable, path.into()))
}

fn variable_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((variable, value)) if !variable.is_empty() => {
            Ok((variable.to_owned(), value.to_owned()))
        }
        _ => Err("expected VARIABLE=VALUE".to_owned()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new().context("cannot start worker threads");
    let outcome = runtime.and_then(|runtime| {
        runtime.block_on(async {
            match cli.command {
                Command::Setup(args) => setup::setup(&cli.root, args.plan).await,
                Command::Kernel(args) => kernel::run(&cli.root, args.plan).await,
                Command::Run(args) => run::run(&cli.root, args).await,
                Command::Clients(args) => clients::run(&cli.root, args).await,
            }
        })
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_after_the_program_is_its_own() {
        let words = [
            "x", "run", "--file", "A=/b=c", "--env", "N=1", "--", "prog", "--test", "run::",
        ];
        let cli = Cli::try_parse_from(words).unwrap();
        let Command::Run(args) = cli.command else {
            panic!("parsed as something else: {cli:?}");
        };
        assert_eq!(args.files, [("A".to_owned(), PathBuf::from("/b=c"))]);
        assert_eq!(args.variables, [("N".to_owned(), "1".to_owned())]);
        assert_eq!(args.program, PathBuf::from("prog"));
        assert_eq!(args.arguments, ["--test", "run::"]);
    }
}
