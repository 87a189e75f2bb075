//! `wrenn snapshot delete`.

use std::process::ExitCode;

use serde_json::json;
use wrenn_sdk::Client;

use crate::explain::of_sdk;
use crate::{completion, escape, output};

/// Options of `wrenn snapshot delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn snapshot delete warmed-up
  wrenn snapshot list -q | xargs -r wrenn snapshot delete

Sandboxes that were created from a snapshot keep its data until they are destroyed; they are
named.")]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The snapshots, by name or id.
    #[arg(required = true, value_name = "SNAPSHOT", add = completion::snapshots())]
    snapshots: Vec<String>,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let mut deleted = Vec::new();
    let mut failed = false;
    for name in &args.snapshots {
        match client.snapshots().delete(name).await {
            Ok(users) => {
                if !users.is_empty() && !args.json {
                    let users = users.join(", ");
                    let users = escape::line(&users);
                    drop_eprintln!(
                        "wrenn: {}: its data is kept for {users}",
                        escape::line(name)
                    );
                }
                deleted.push(json!({ "deleted": name, "still_needed_by": users }));
            }
            Err(error)
                if args.snapshots.len() == 1 || error.is_connect() || error.is_unauthorized() =>
            {
                return Err(error.into());
            }
            Err(error) => {
                failed = true;
                let why = of_sdk(&error);
                drop_eprintln!("wrenn: {}: {}", escape::line(name), escape::line(&why));
            }
        }
    }
    if args.json {
        output::json(&deleted)?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
