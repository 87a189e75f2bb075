//! `wrenn agent`: what a person asks the agent of a host directly.

mod client;
mod console;
mod copy;
mod create;
mod exec;
mod json;
mod pause;
mod show;
mod signal;
mod snapshot;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use wrenn_proto::hostagent::{DestroySandboxRequest, PingSandboxRequest, ResumeSandboxRequest};

use client::AgentClient;

/// Options of `wrenn agent`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn agent info
  id=$(wrenn agent create --template minimal --memory 128M)
  wrenn agent exec $id -- uname -a
  wrenn agent exec -it $id -- sh
  wrenn agent cp ./file $id:/tmp/file
  wrenn agent list --json | jq -r '.sandboxes[].id'
  wrenn agent pause $id && wrenn agent resume $id
  wrenn agent snapshot create $id warmed-up
  wrenn agent create --template warmed-up
  wrenn agent fork $id -n 5
  wrenn agent destroy $id

The agent's token is read from its root directory (--root or --token-file), or taken from
WRENN_AGENT_TOKEN.

The exit code of exec is the command's own; 1 if the agent refuses or cannot be reached.")]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

/// Which agent, and how its answers are printed.
#[derive(Clone, Debug, clap::Args)]
struct Target {
    /// Where the agent listens.
    #[arg(
        long = "agent",
        global = true,
        value_name = "URL",
        env = "WRENN_AGENT",
        default_value = "http://127.0.0.1:7410"
    )]
    url: String,
    /// File of the agent's token; agent-token of the root directory unless set.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "AGENT_TOKEN_FILE",
        hide_env_values = true
    )]
    token_file: Option<PathBuf>,
    /// The token itself. No flag for people: others could read it off the process list.
    #[arg(
        long = "token",
        global = true,
        hide = true,
        env = "WRENN_AGENT_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

impl Target {
    /// The agent's token; `None` where it is not known.
    fn token(&self, root: &Path) -> anyhow::Result<Option<String>> {
        if let Some(token) = &self.token {
            return Ok(Some(token.clone()));
        }
        let path = match &self.token_file {
            Some(path) => path.clone(),
            None => root.join("agent-token"),
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            // The agent may be elsewhere, and says itself that it wants a token.
            Err(error) if self.token_file.is_none() && is_out_of_reach(&error) => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read the token file {}", path.display()))
            }
        }
    }
}

fn is_out_of_reach(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory
    )
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Create a sandbox and print its id.
    Create(create::Args),
    /// List all sandboxes.
    List,
    /// Show one sandbox, its access token included.
    Get { id: String },
    /// Run a command in a sandbox.
    Exec(exec::Args),
    /// Copy a file into a sandbox or out of it.
    Cp(copy::Args),
    /// List the commands that run in a sandbox.
    Ps { id: String },
    /// Send a signal to a command and its children.
    Kill(signal::Args),
    /// Count as use of a sandbox, and perhaps change its time-out.
    Ping {
        id: String,
        /// How long it may be idle from now on: 30s, 5m; 0s for any length.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        timeout: Option<std::time::Duration>,
    },
    /// Write sandboxes down, memory and disk, and give back all else that they have.
    Pause {
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// Every sandbox that runs.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Let a paused sandbox go on.
    Resume {
        id: String,
        /// How long it may be idle from now on: 30s, 5m; 0s for any length.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        timeout: Option<std::time::Duration>,
    },
    /// Make sandboxes that go on where this one is now, and print their ids.
    Fork(snapshot::ForkArgs),
    /// Snapshots that have a name, of which sandboxes can be created.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// End sandboxes, data included.
    Destroy {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Show what a sandbox uses.
    Metrics { id: String },
    /// Print the end of a sandbox's console.
    Console(console::Args),
    /// Show what the host has, and has promised.
    Info,
}

/// Runs one sub-command. The agent's token lies in `root` unless said otherwise.
///
/// # Errors
/// When the agent refuses or cannot be reached.
pub async fn run(root: &Path, args: Args) -> anyhow::Result<ExitCode> {
    let json = args.target.json;
    let token = args.target.token(root)?;
    let agent = AgentClient::new(&args.target.url, token.as_deref())?;
    match args.command {
        Command::Exec(args) => return exec::run(&agent, args).await,
        Command::Create(args) => create::run(&agent, args, json).await?,
        Command::Cp(args) => copy::run(&agent, args).await?,
        Command::Kill(args) => signal::run(&agent, &args).await?,
        Command::Ping { id, timeout } => {
            let request = PingSandboxRequest {
                id,
                timeout_sec: timeout.map(|timeout| timeout.as_secs()),
            };
            let answer = agent.rpc.ping_sandbox(request).await;
            agent.check(answer)?;
        }
        Command::Pause { ids, all } => pause::run(&agent, ids, all).await?,
        Command::Resume { id, timeout } => {
            let request = ResumeSandboxRequest {
                id,
                timeout_sec: timeout.map(|timeout| timeout.as_secs()),
            };
            let answer = agent.rpc.resume_sandbox(request).await;
            agent.check(answer)?;
        }
        Command::Fork(args) => snapshot::fork(&agent, args, json).await?,
        Command::Snapshot(command) => snapshot::run(&agent, command, json).await?,
        Command::Destroy { ids } => {
            for id in ids {
                let answer = agent.rpc.destroy_sandbox(DestroySandboxRequest { id });
                agent.check(answer.await)?;
            }
        }
        Command::List => show::list(&agent, json).await?,
        Command::Get { id } => show::get(&agent, id, json).await?,
        Command::Ps { id } => show::processes(&agent, id, json).await?,
        Command::Metrics { id } => show::metrics(&agent, id, json).await?,
        Command::Console(args) => console::run(&agent, args).await?,
        Command::Info => show::info(&agent, json).await?,
    }
    Ok(ExitCode::SUCCESS)
}
