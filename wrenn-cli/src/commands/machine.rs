//! Not there yet.

use std::process::ExitCode;

use crate::GlobalArgs;

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// None yet.
pub async fn run(_global: &GlobalArgs, _args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
