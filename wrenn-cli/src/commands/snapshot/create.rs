//! `wrenn snapshot create`.

use std::process::ExitCode;

use wrenn_sdk::{Client, SnapshotOptions};

use crate::{completion, output};

/// Options of `wrenn snapshot create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn snapshot create web
  wrenn snapshot create web warmed-up --overwrite

Memory, processes and files are in it. A sandbox that is created from it goes on from there.")]
pub(super) struct Args {
    /// Take the name from the snapshot that has it.
    #[arg(long, requires = "name")]
    overwrite: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The sandbox.
    #[arg(value_name = "SANDBOX", add = completion::sandboxes())]
    sandbox: String,
    /// A name of up to 63 lower-case letters, digits and dashes; it goes by its id without.
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let mut options = args.name.map_or_else(SnapshotOptions::new, Into::into);
    if args.overwrite {
        options = options.overwrite();
    }
    let snapshot = client.snapshots().create(&args.sandbox, options).await?;
    if args.json {
        output::json(&snapshot)?;
    } else {
        output::line(snapshot.reference())?;
    }
    Ok(ExitCode::SUCCESS)
}
