//! `wrenn sandbox fork`.

use std::process::ExitCode;

use serde_json::json;
use wrenn_sdk::{Client, ForkOptions};

use crate::commands::UsageError;
use crate::explain::of_sdk;
use crate::{completion, escape, output};

/// Options of `wrenn sandbox fork`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox fork web
  wrenn sandbox fork web -n 5
  wrenn sandbox fork web --name left --name right

Each child goes on where the sandbox is now: memory, processes and files are the same. Exits
with 1 if one of them could not be created.")]
pub(super) struct Args {
    /// How many.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    count: Option<u32>,
    /// A name for a child; given once for each of them, or not at all.
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The sandbox.
    #[arg(value_name = "SANDBOX", add = completion::sandboxes())]
    sandbox: String,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let names = u32::try_from(args.name.len()).unwrap_or(u32::MAX);
    let count = args.count.unwrap_or(names.max(1));
    if names > 0 && names != count {
        return Err(UsageError(format!("{count} children need {count} names, not {names}")).into());
    }
    let sandbox = client.sandboxes().get(&args.sandbox).await?;
    let options = ForkOptions::from(count).names(args.name);
    let forked = sandbox.fork(options).await?;
    if args.json {
        let items: Vec<_> = forked
            .iter()
            .map(|child| match child {
                Ok(sandbox) => json!({ "sandbox": sandbox.info() }),
                Err(error) => json!({ "error": of_sdk(error) }),
            })
            .collect();
        output::json(&items)?;
    }
    let mut failed = false;
    for child in &forked {
        match child {
            Ok(_) if args.json => {}
            Ok(sandbox) => output::line(sandbox.id().as_str())?,
            Err(error) => {
                failed = true;
                drop_eprintln!(
                    "wrenn: a child could not be created: {}",
                    escape::line(&of_sdk(error))
                );
            }
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
