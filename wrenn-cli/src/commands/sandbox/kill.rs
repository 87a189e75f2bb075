//! `wrenn sandbox kill`.

use std::process::ExitCode;

use wrenn_sdk::{Client, Signal};

use crate::completion;

/// Options of `wrenn sandbox kill`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox kill web 42
  wrenn sandbox kill web server --signal HUP

`wrenn sandbox ps` shows process ids and tags.")]
pub(super) struct Args {
    /// Signal to send, by name or number.
    #[arg(long, short, value_name = "SIGNAL", default_value = "TERM")]
    signal: Signal,
    /// The sandbox.
    #[arg(value_name = "SANDBOX", add = completion::sandboxes())]
    sandbox: String,
    /// The command's process id in the guest, or its tag.
    #[arg(value_name = "PID|TAG")]
    process: String,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let sandbox = client.sandboxes().get(&args.sandbox).await?;
    sandbox.signal(args.process.as_str(), args.signal).await?;
    Ok(ExitCode::SUCCESS)
}
