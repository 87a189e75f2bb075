//! `wrenn sandbox ping`.

use std::process::ExitCode;
use std::time::Duration;

use wrenn_sdk::Client;

use super::several::each;
use crate::completion;

/// Options of `wrenn sandbox ping`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox ping web
  wrenn sandbox ping web --timeout 1h

The idle time of the sandbox begins anew, as with any command in it.")]
pub(super) struct Args {
    /// How long it may be idle from now on before it is paused: 30s, 5m; 0s for any length.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The sandboxes.
    #[arg(required = true, value_name = "SANDBOX", add = completion::sandboxes())]
    sandboxes: Vec<String>,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    each(client, &args.sandboxes, args.json, async |sandbox| {
        match args.timeout {
            Some(timeout) => sandbox.ping_with_timeout(timeout).await?,
            None => sandbox.ping().await?,
        }
        Ok(sandbox.info().clone())
    })
    .await
}
