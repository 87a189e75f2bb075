//! `wrenn sandbox create`.

use std::process::ExitCode;
use std::time::Duration;

use wrenn_sdk::api::sandbox::Network;
use wrenn_sdk::{Client, CreateOptions, Sandbox};

use super::exec::{self, How};
use crate::commands::UsageError;
use crate::size::parse_mib;
use crate::terminal::Signals;
use crate::variable::parse_pair;
use crate::{completion, escape, output};

/// The shell where no command is given: bash if there is one.
const SHELL: [&str; 3] = [
    "sh",
    "-c",
    "command -v bash >/dev/null && exec bash -l || exec sh -l",
];

/// Options of `wrenn sandbox create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  id=$(wrenn sandbox create)
  wrenn sandbox create --name web --template python --memory 1G --timeout 10m
  wrenn sandbox create --rm -it
  wrenn sandbox create --rm -- python3 -c 'print(1 + 1)'
  wrenn sandbox create --no-internet --allow 198.51.100.0/24

Standard output has the id alone. With -i, -t or a command it is the command's, whose exit code
is returned; without a command a shell runs.")]
pub(super) struct Args {
    /// Template or snapshot that the sandbox is made from.
    #[arg(long, value_name = "NAME", default_value = "base", add = completion::templates())]
    template: String,
    /// A name to use in place of the id: up to 63 lower-case letters, digits and dashes.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Virtual CPUs; 1 unless set, or those of the snapshot.
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory: 512M, 2G, or a number of MiB; 512M unless set, or that of the snapshot.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    memory: Option<u64>,
    /// Something to find it by; may be given often.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_pair)]
    metadata: Vec<(String, String)>,
    /// How long it may be idle before it is paused: 30s, 5m; any length unless set.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Reach no address but those of --allow.
    #[arg(long)]
    no_internet: bool,
    /// A network or address that it reaches; may be given often.
    #[arg(long, value_name = "CIDR")]
    allow: Vec<String>,
    /// A network or address that it does not reach; may be given often.
    #[arg(long, value_name = "CIDR")]
    deny: Vec<String>,
    /// Do not wait until it runs.
    #[arg(long, conflicts_with_all = ["rm", "interactive", "tty", "command"])]
    no_wait: bool,
    /// Print JSON in place of the id.
    #[arg(long, conflicts_with_all = ["interactive", "tty", "command"])]
    json: bool,
    /// Destroy the sandbox when the command has ended.
    #[arg(long)]
    rm: bool,
    #[command(flatten)]
    how: How,
    /// A command to run in it, and its arguments.
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Args {
    const fn attaches(&self) -> bool {
        self.how.interactive || self.how.tty || !self.command.is_empty()
    }
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    if args.rm && !args.attaches() {
        let hint = "--rm destroys the sandbox after a command: add -it for a shell, or a command";
        return Err(UsageError(hint.to_owned()).into());
    }
    args.how.attach(None).check()?;
    let options = options(&args)?;
    if args.rm {
        return throw_away(client, options, args).await;
    }
    let sandbox = client.sandboxes().create(options).await?;
    if args.json {
        output::json(sandbox.info())?;
    } else if args.attaches() {
        drop_eprintln!("wrenn: sandbox {}", escape::line(sandbox.id().as_str()));
        return attached(Signals::listen()?, &sandbox, args).await;
    } else {
        output::line(sandbox.id().as_str())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn options(args: &Args) -> anyhow::Result<CreateOptions> {
    let mut options = CreateOptions::from_template(args.template.as_str());
    if let Some(name) = &args.name {
        options = options.name(name);
    }
    if let Some(vcpus) = args.vcpus {
        options = options.vcpus(vcpus);
    }
    if let Some(memory) = args.memory {
        let memory = u32::try_from(memory)
            .map_err(|_| UsageError(format!("{memory} MiB is more than any host has")))?;
        options = options.memory_mib(memory);
    }
    for (name, value) in &args.metadata {
        options = options.metadata(name, value);
    }
    if let Some(timeout) = args.timeout {
        options = options.idle_timeout(timeout);
    }
    if args.no_wait {
        options = options.without_waiting();
    }
    // The environment is that of each command; attached ones get it again, which is the same.
    options = options.envs(args.how.env().cloned().collect());
    Ok(options.network(Network {
        allow_internet: !args.no_internet,
        allow: args.allow.clone(),
        deny: args.deny.clone(),
    }))
}

async fn attached(signals: Signals, sandbox: &Sandbox, args: Args) -> anyhow::Result<ExitCode> {
    let command = if args.command.is_empty() {
        SHELL.map(str::to_owned).to_vec()
    } else {
        args.command
    };
    exec::attached(signals, sandbox, args.how, None, command).await
}

/// Creates a sandbox, runs a command in it and destroys it, whatever happens in between.
async fn throw_away(
    client: &Client,
    options: CreateOptions,
    args: Args,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let mut interrupted = None;
    let created = {
        let sandboxes = client.sandboxes();
        let mut create = std::pin::pin!(sandboxes.create(options));
        loop {
            tokio::select! {
                created = &mut create => break created,
                received = signals.next_to_end() => {
                    if interrupted.is_some() && received.insists() {
                        drop_eprintln!("wrenn: left; the sandbox may still be created");
                        return Ok(received.exit_code());
                    }
                    interrupted = interrupted.or(Some(received));
                    drop_eprintln!("wrenn: the sandbox is destroyed as soon as it is there; Ctrl-C again leaves it");
                }
            }
        }
    };
    let sandbox = created?;
    let outcome = match interrupted {
        Some(received) => Ok(received.exit_code()),
        None => attached(signals, &sandbox, args).await,
    };
    if let Err(error) = sandbox.destroy().await
        && !error.is_not_found()
    {
        drop_eprintln!(
            "wrenn: the sandbox {} was not destroyed: {}",
            escape::line(sandbox.id().as_str()),
            escape::line(&crate::explain::of_sdk(&error))
        );
        return outcome.and(Ok(ExitCode::FAILURE));
    }
    outcome
}
