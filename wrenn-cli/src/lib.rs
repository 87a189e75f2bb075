//! Everything behind the `wrenn` program, as a library so that tests can call it.
//!
//! Each sub-command is one file in [`commands`]. Data goes to standard output, all else
//! to standard error. Exit codes: the command's own for `run` and `exec`, 2 for a usage
//! error, 1 for any other failure.
//!
//! Without the feature `host` it is a client only, and links no engine.

#![warn(clippy::print_stderr)]

#[macro_use]
pub mod broken_pipe;
pub mod commands;
mod completion;
mod escape;
mod explain;
mod logging;
mod output;
#[cfg(feature = "host")]
mod progress;
mod size;
pub mod terminal;
mod variable;

use std::ffi::OsString;
#[cfg(feature = "host")]
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser};

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
    #[cfg(feature = "host")]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "AGENT_FILES_ROOTDIR",
        default_value = "/var/lib/wrenn"
    )]
    pub root: PathBuf,
    /// Whether the root directory stands on the command line: what could be asked of a
    /// server as well is then asked of the directory.
    #[cfg(feature = "host")]
    #[arg(skip)]
    pub root_is_given: bool,
    /// More detail on standard error; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Runs the program with the given arguments, the program's name first.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    if let Some(code) = completion::answer(&args) {
        return code;
    }
    let cli = match parse(args.into_iter()) {
        Ok(cli) => cli,
        Err(error) => {
            // Printing help to a closed pipe is nobody's failure.
            let _printed = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    logging::start(cli.global.verbose);
    if let Err(error) = wrenn_nss::use_files_and_dns() {
        drop_eprintln!("wrenn: failed to choose how host names are resolved: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            drop_eprintln!("wrenn: cannot start worker threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(commands::dispatch(cli.global, cli.command));
    // A read of standard input may never return; it must not hold up the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            drop_eprintln!("wrenn: {}", explain::explain(&error));
            ExitCode::from(commands::exit_code_of(&error))
        }
    }
}

/// Reads the command line.
///
/// # Errors
/// A usage error of clap, or the text of `--help` and `--version`.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    #[cfg(feature = "host")]
    let cli = {
        let mut cli = cli;
        cli.global.root_is_given = is_given(&matches, "root");
        cli
    };
    Ok(cli)
}

/// Whether an option stands on the command line, before or after a sub-command.
#[cfg(feature = "host")]
fn is_given(matches: &clap::ArgMatches, name: &str) -> bool {
    matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine)
        || matches
            .subcommand()
            .is_some_and(|(_, below)| is_given(below, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> impl Iterator<Item = OsString> {
        line.split(' ')
            .map(OsString::from)
            .collect::<Vec<_>>()
            .into_iter()
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[cfg(feature = "host")]
    #[test]
    fn root_is_given_wherever_it_stands() {
        for (line, given) in [
            ("wrenn template list", false),
            ("wrenn template list --root /x", true),
            ("wrenn --root /x template list", true),
            ("wrenn template --root=/x list", true),
        ] {
            let cli = parse(words(line)).unwrap();
            assert_eq!(cli.global.root_is_given, given, "{line}");
        }
    }

    #[test]
    fn misspelt_sub_command_suggests_the_near_one() {
        let error = parse(words("wrenn sandbox creat")).unwrap_err().to_string();
        assert!(error.contains("create"), "{error}");
    }
}
