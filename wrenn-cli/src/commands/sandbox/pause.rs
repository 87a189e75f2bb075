//! `wrenn sandbox pause`.

use std::process::ExitCode;

use wrenn_sdk::api::status::Status;
use wrenn_sdk::{Client, ListOptions};

use super::several::{each, ids};
use crate::completion;

/// Options of `wrenn sandbox pause`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox pause web
  wrenn sandbox pause --all

A sandbox that is paused already stays paused. Use does not wake it: resume it.")]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Every sandbox that runs.
    #[arg(long, conflicts_with = "sandboxes")]
    all: bool,
    /// The sandboxes.
    #[arg(required_unless_present = "all", value_name = "SANDBOX", add = completion::sandboxes())]
    sandboxes: Vec<String>,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let running = args.all.then(|| ListOptions::new().status(Status::Running));
    let ids = ids(client, args.sandboxes, running).await?;
    each(client, &ids, args.json, async |sandbox| {
        sandbox.pause().await?;
        Ok(sandbox.info().clone())
    })
    .await
}
