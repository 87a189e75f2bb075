//! `wrenn snapshot list`.

use std::process::ExitCode;

use wrenn_sdk::Client;

use crate::commands::template::table;
use crate::{completion, output};

/// Options of `wrenn snapshot list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn snapshot list
  wrenn snapshot list --sandbox web
  wrenn snapshot list --json | jq -r '.[].name'")]
pub(super) struct Args {
    /// Only those of this sandbox.
    #[arg(long, value_name = "SANDBOX", add = completion::sandboxes())]
    sandbox: Option<String>,
    /// Print names only, or ids where there is no name.
    #[arg(long, short)]
    quiet: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let list = match args.sandbox {
        Some(sandbox) => client.snapshots().list_of(sandbox),
        None => client.snapshots().list(),
    };
    let snapshots = list.all().await?;
    if args.json {
        output::json(&snapshots)?;
    } else if args.quiet {
        for snapshot in &snapshots {
            output::line(snapshot.reference())?;
        }
    } else {
        output::print(&table(&snapshots))?;
    }
    Ok(ExitCode::SUCCESS)
}
