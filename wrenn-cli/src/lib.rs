//! Everything behind the `wrenn` program, as a library so that tests can call it.
//!
//! Each sub-command is one file in [`commands`]. Data goes to standard output, all else
//! to standard error. Exit codes: the command's own for `run` and `exec`, 2 for a usage
//! error, 1 for any other failure.

pub mod commands;
mod logging;
mod progress;
mod size;
pub mod terminal;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Runs untrusted code in microVM sandboxes.
#[derive(Debug, Parser)]
#[command(name = "wrenn", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: commands::Command,
}

/// Options that every sub-command takes.
#[derive(Clone, Debug, clap::Args)]
pub struct GlobalArgs {
    /// Directory that holds kernels, templates and sandboxes.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "AGENT_FILES_ROOTDIR",
        default_value = "/var/lib/wrenn"
    )]
    pub root: PathBuf,
    /// More detail on standard error; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Runs the program with the given arguments, the program's name first.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Printing help to a closed pipe is nobody's failure.
            let _printed = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    logging::start(cli.global.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("wrenn: cannot start worker threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(commands::dispatch(cli.global, cli.command));
    // A read of standard input may never return; it must not hold up the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("wrenn: {error:#}");
            ExitCode::from(commands::exit_code_of(&error))
        }
    }
}
