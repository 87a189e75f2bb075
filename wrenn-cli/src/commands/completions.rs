//! `wrenn completions`: what a shell needs to complete our words.

use std::process::ExitCode;

use clap_complete::Shell;

use crate::{completion, output};

/// Options of `wrenn completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(wrenn completions bash)
  wrenn completions bash > /etc/bash_completion.d/wrenn
  wrenn completions zsh > ~/.zfunc/_wrenn
  wrenn completions fish > ~/.config/fish/completions/wrenn.fish

The script asks wrenn at each Tab, which asks the server for sandboxes, templates and snapshots,
and waits no longer than a second. It is a part of the program: after an upgrade, write it anew.
The first example, as a line of ~/.bashrc, always has the right one.")]
pub struct Args {
    /// The shell.
    pub shell: Shell,
}

/// Prints the shell's script.
///
/// # Errors
/// When standard output takes nothing.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let script = completion::script(&args.shell.to_string(), &completion::program())?;
    output::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
