//! `wrenn sandbox exec`.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use wrenn_sdk::{Client, Sandbox};

use super::attached::AttachedProcess;
use crate::terminal::{self, Attach, Signals, terminal_size};
use crate::variable;
use crate::{completion, output};

/// Options of `wrenn sandbox exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox exec web -- uname -a
  wrenn sandbox exec -it web -- bash
  tar c src | wrenn sandbox exec -i web -- tar x
  wrenn sandbox exec -e TOKEN --user root web -- sh -c 'echo $TOKEN'
  wrenn sandbox exec -d --tag server web -- python3 -m http.server

The exit code is the command's own; 128 and the signal's number if it died by a signal; 127 if
it was not found, 126 if it is no program; 124 if --timeout ended it; 1 if the server or the
connection failed. Ctrl-C goes to the command; a second one leaves it alone.")]
pub(super) struct Args {
    #[command(flatten)]
    how: How,
    /// End the command after this long: 30s, 5m, 1h30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Return at once and print the process id. The command goes on.
    #[arg(long, short, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Print JSON, with --detach.
    #[arg(long, requires = "detach")]
    json: bool,
    /// The sandbox.
    #[arg(value_name = "SANDBOX", add = completion::sandboxes())]
    sandbox: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How a command is run.
#[derive(Debug, clap::Args)]
pub(super) struct How {
    /// Pass standard input on to the command.
    #[arg(long, short)]
    pub(super) interactive: bool,
    /// Give the command a terminal; implies -i.
    #[arg(long, short)]
    pub(super) tty: bool,
    /// Variable of the command's environment; NAME alone takes its value here; may be given
    /// often.
    #[arg(long, short, value_name = "NAME[=VALUE]", value_parser = variable::parse)]
    env: Vec<(String, String)>,
    /// Directory that the command starts in.
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// User of the guest that the command runs as.
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// A name to find the command by.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
}

impl How {
    pub(super) fn env(&self) -> impl Iterator<Item = &(String, String)> {
        self.env.iter()
    }

    /// Which of our streams the command gets.
    pub(super) const fn attach(&self, timeout: Option<Duration>) -> Attach {
        Attach {
            stdin: self.interactive || self.tty,
            tty: self.tty,
            timeout,
        }
    }
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    args.how.attach(args.timeout).check()?;
    let sandbox = client.sandboxes().get(&args.sandbox).await?;
    if !args.detach {
        return attached(
            Signals::listen()?,
            &sandbox,
            args.how,
            args.timeout,
            args.command,
        )
        .await;
    }
    let mut words = args.command.into_iter();
    let mut exec = sandbox.exec(words.next().unwrap_or_default(), words);
    exec = exec.envs(args.how.env.into_iter().collect());
    if let Some(directory) = args.how.cwd {
        exec = exec.cwd(directory);
    }
    if let Some(user) = args.how.user {
        exec = exec.user(user);
    }
    if let Some(timeout) = args.timeout {
        exec = exec.timeout(timeout);
    }
    let started = exec.background(args.how.tag.unwrap_or_default()).await?;
    if args.json {
        output::json(&json!({ "pid": started.pid, "tag": started.tag }))?;
    } else {
        output::line(&started.pid.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command and stays with it to its end.
pub(super) async fn attached(
    signals: Signals,
    sandbox: &Sandbox,
    how: How,
    timeout: Option<Duration>,
    command: Vec<String>,
) -> anyhow::Result<ExitCode> {
    let attach = how.attach(timeout);
    let mut words = command.into_iter();
    let mut spawn = sandbox.spawn(words.next().unwrap_or_default(), words);
    spawn = spawn.envs(how.env.into_iter().collect());
    if let Some(directory) = how.cwd {
        spawn = spawn.cwd(directory);
    }
    if let Some(user) = how.user {
        spawn = spawn.user(user);
    }
    if let Some(tag) = how.tag {
        spawn = spawn.tag(tag);
    }
    if let Some(timeout) = timeout {
        spawn = spawn.timeout(timeout);
    }
    if attach.tty {
        spawn = spawn.tty(terminal_size());
        if let Ok(term) = std::env::var("TERM") {
            spawn = spawn.env("TERM", term);
        }
    } else if attach.stdin {
        spawn = spawn.stdin();
    }
    let start = async { Ok(AttachedProcess::new(spawn.await?)) };
    terminal::run_remote(signals, start, attach).await
}
