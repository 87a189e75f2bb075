//! `wrenn sandbox`: sandboxes of a server.

mod attached;
mod cp;
mod create;
mod destroy;
mod exec;
mod fork;
mod get;
mod kill;
mod list;
mod logs;
mod pause;
mod ping;
mod ps;
mod resume;
mod several;
mod transfer_bar;

use std::process::ExitCode;

use wrenn_sdk::Client;

/// Options of `wrenn sandbox`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  id=$(wrenn sandbox create)
  wrenn sandbox exec $id -- uname -a
  wrenn sandbox create --rm -it
  wrenn sandbox create --name web --template base --memory 1G
  wrenn sandbox cp ./src web:/home/user/src
  wrenn sandbox pause web && wrenn sandbox resume web
  wrenn sandbox destroy web

A sandbox is named by its id or its name. The server is that of WRENN_API_URL, else the one
that `wrenn up` started; the key is that of WRENN_API_KEY, else the one that `wrenn up` wrote
to ~/.config/wrenn/credentials.json.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Create a sandbox and print its id.
    #[command(visible_alias = "new")]
    Create(create::Args),
    /// List sandboxes.
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Show one sandbox.
    #[command(visible_alias = "inspect")]
    Get(get::Args),
    /// Run a command in a sandbox.
    Exec(exec::Args),
    /// Copy files and directories into a sandbox or out of it.
    Cp(cp::Args),
    /// Pause sandboxes: memory and disk go to the host's disk.
    Pause(pause::Args),
    /// Let paused sandboxes go on.
    Resume(resume::Args),
    /// Count as use of sandboxes, and perhaps change their idle timeout.
    Ping(ping::Args),
    /// Create sandboxes that go on where this one is now, and print their ids.
    Fork(fork::Args),
    /// End sandboxes, data included.
    #[command(visible_alias = "rm")]
    Destroy(destroy::Args),
    /// Print a sandbox's console.
    Logs(logs::Args),
    /// List the commands that run in a sandbox.
    Ps(ps::Args),
    /// Send a signal to a command and its children.
    Kill(kill::Args),
}

/// Runs one sub-command.
///
/// # Errors
/// When the server refuses or cannot be reached.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::from_env()?;
    match args.command {
        Command::Create(args) => create::run(&client, args).await,
        Command::List(args) => list::run(&client, args).await,
        Command::Get(args) => get::run(&client, args).await,
        Command::Exec(args) => exec::run(&client, args).await,
        Command::Cp(args) => cp::run(&client, args).await,
        Command::Pause(args) => pause::run(&client, args).await,
        Command::Resume(args) => resume::run(&client, args).await,
        Command::Ping(args) => ping::run(&client, args).await,
        Command::Fork(args) => fork::run(&client, args).await,
        Command::Destroy(args) => destroy::run(&client, args).await,
        Command::Logs(args) => logs::run(&client, args).await,
        Command::Ps(args) => ps::run(&client, args).await,
        Command::Kill(args) => kill::run(&client, args).await,
    }
}
