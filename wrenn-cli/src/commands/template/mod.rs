//! `wrenn template`: what sandboxes are made from, on a server or in a root directory.

#[cfg(feature = "host")]
mod machine;
#[cfg(feature = "host")]
mod root;
mod server;

use std::process::ExitCode;

use wrenn_sdk::Client;

use crate::GlobalArgs;
pub(super) use server::table;

/// Options of `wrenn template`.
#[derive(Debug, clap::Args)]
#[cfg_attr(
    feature = "host",
    command(after_help = "\
Examples:
  wrenn template list
  docker save python:3.13 | gzip > python.tar.gz
  wrenn template build python --from python.tar.gz
  wrenn run --template python -- python3 --version
  wrenn template list --root /var/lib/wrenn --json
  wrenn template delete python")
)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a template from a root file system or a container image.
    #[cfg(feature = "host")]
    Build(root::Build),
    /// List the templates of the server; with --root, those of a directory.
    #[command(visible_alias = "ls")]
    List(server::List),
    /// Delete a template of a root directory that nothing uses any more.
    #[cfg(feature = "host")]
    Delete(root::Delete),
    /// Put a template that was sent here into the root directory.
    #[cfg(feature = "host")]
    #[command(hide = true)]
    Receive(machine::Receive),
}

/// Runs the sub-command.
///
/// # Errors
/// When the template cannot be made, listed or deleted.
#[cfg_attr(
    not(feature = "host"),
    allow(unused_variables, reason = "there is no root directory")
)]
pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<ExitCode> {
    match args.action {
        #[cfg(feature = "host")]
        Action::Build(args) => root::build(global, args).await,
        #[cfg(feature = "host")]
        Action::List(args) if global.root_is_given => root::list(global, args.json).await,
        Action::List(args) => server::list(&Client::from_env()?, args).await,
        #[cfg(feature = "host")]
        Action::Delete(args) => root::delete(global, args).await,
        #[cfg(feature = "host")]
        Action::Receive(args) => root::receive(global, args).await,
    }
}
