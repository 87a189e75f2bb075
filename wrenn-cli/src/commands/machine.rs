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

/// Whether sandboxes run on this host itself.
pub fn host_can_run_sandboxes() -> bool {
    true
}

/// Runs the command in the machine.
///
/// # Errors
/// Always, for now.
pub async fn run_inside(
    _global: &GlobalArgs,
    _args: &super::run::Args,
) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
