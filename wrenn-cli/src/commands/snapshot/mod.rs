//! `wrenn snapshot`: snapshots of a server, and the builds of a root directory.

mod create;
mod delete;
#[cfg(feature = "host")]
mod inspect;
mod list;

use std::process::ExitCode;

use wrenn_sdk::Client;

use crate::GlobalArgs;

/// Options of `wrenn snapshot`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn snapshot create web warmed-up
  wrenn sandbox create --template warmed-up
  wrenn snapshot list
  wrenn snapshot delete warmed-up")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a snapshot of a sandbox, which goes on, and print its name or id.
    Create(create::Args),
    /// List the snapshots of the server.
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Delete snapshots of the server.
    #[command(visible_alias = "rm")]
    Delete(delete::Args),
    /// Say what a snapshot, or a build of one, is made of on its host.
    #[cfg(feature = "host")]
    Inspect(inspect::Args),
}

/// Runs the sub-command.
///
/// # Errors
/// When the server refuses or cannot be reached; when a build cannot be read, or does not
/// verify.
#[cfg_attr(
    not(feature = "host"),
    allow(unused_variables, reason = "only builds lie in a root directory")
)]
pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Create(args) => create::run(&Client::from_env()?, args).await,
        Action::List(args) => list::run(&Client::from_env()?, args).await,
        Action::Delete(args) => delete::run(&Client::from_env()?, args).await,
        #[cfg(feature = "host")]
        Action::Inspect(args) => inspect::run(global, args).await,
    }
}
