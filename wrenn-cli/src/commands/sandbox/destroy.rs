//! `wrenn sandbox destroy`.

use std::process::ExitCode;

use serde::Serialize;
use wrenn_sdk::{Client, ListOptions};

use super::several::{each, ids};
use crate::{completion, escape};

/// Options of `wrenn sandbox destroy`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox destroy web
  wrenn sandbox list --status paused -q | xargs -r wrenn sandbox destroy
  wrenn sandbox destroy --all

Snapshots that were made of a sandbox stay.")]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Every sandbox.
    #[arg(long, conflicts_with = "sandboxes")]
    all: bool,
    /// The sandboxes.
    #[arg(required_unless_present = "all", value_name = "SANDBOX", add = completion::sandboxes())]
    sandboxes: Vec<String>,
}

#[derive(Serialize)]
struct Destroyed {
    id: String,
    /// Whether it is gone already: a host that is away destroys it when it is back.
    gone: bool,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let all = args.all.then(ListOptions::new);
    let ids = ids(client, args.sandboxes, all).await?;
    each(client, &ids, args.json, async |sandbox| {
        let gone = sandbox.destroy().await?;
        let id = sandbox.id().to_string();
        if !gone {
            drop_eprintln!(
                "wrenn: the host of {} is away; it is destroyed when the host is back",
                escape::line(&id)
            );
        }
        Ok(Destroyed { id, gone })
    })
    .await
}
