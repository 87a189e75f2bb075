//! `wrenn sandbox ps`.

use std::process::ExitCode;

use wrenn_sdk::Client;

use crate::{completion, output};

/// Options of `wrenn sandbox ps`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox ps web
  wrenn sandbox ps web -q | xargs -r -n 1 wrenn sandbox kill web

Shows what was started through the server; `wrenn sandbox exec web -- ps` shows all.")]
pub(super) struct Args {
    /// Print process ids only.
    #[arg(long, short)]
    quiet: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// The sandbox.
    #[arg(value_name = "SANDBOX", add = completion::sandboxes())]
    sandbox: String,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let sandbox = client.sandboxes().get(&args.sandbox).await?;
    let processes = sandbox.processes().await?;
    if args.json {
        output::json(&processes)?;
    } else if args.quiet {
        for process in &processes {
            output::line(&process.pid.to_string())?;
        }
    } else {
        let rows = processes.into_iter().map(|process| {
            let mut command = process.cmd;
            for argument in process.args {
                command.push(' ');
                command.push_str(&argument);
            }
            let or_dash = |text: String| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    text
                }
            };
            let tty = if process.tty { "yes" } else { "-" };
            [
                process.pid.to_string(),
                or_dash(process.tag),
                tty.to_owned(),
                command,
            ]
        });
        output::print(&output::table(["PID", "TAG", "TTY", "COMMAND"], &[0], rows))?;
    }
    Ok(ExitCode::SUCCESS)
}
