//! `wrenn completions`: what a shell needs to complete our words.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::Cli;

/// Options of `wrenn completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn completions bash > /etc/bash_completion.d/wrenn
  wrenn completions zsh > ~/.zfunc/_wrenn")]
pub struct Args {
    /// The shell.
    pub shell: Shell,
}

/// Prints the shell's script.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    clap_complete::generate(
        args.shell,
        &mut Cli::command(),
        "wrenn",
        &mut std::io::stdout(),
    );
    ExitCode::SUCCESS
}
