//! `wrenn sandbox get`.

use std::process::ExitCode;

use wrenn_sdk::Client;
use wrenn_sdk::api::sandbox::{Sandbox, Source};

use crate::{completion, output};

/// Options of `wrenn sandbox get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox get web
  wrenn sandbox get web --json | jq -r .status")]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print its id only.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// The sandbox.
    #[arg(value_name = "SANDBOX", add = completion::sandboxes())]
    sandbox: String,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let sandbox = client.sandboxes().get(&args.sandbox).await?;
    if args.json {
        output::json(sandbox.info())?;
    } else if args.quiet {
        output::line(sandbox.id().as_str())?;
    } else {
        output::print(&describe(sandbox.info()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(sandbox: &Sandbox) -> String {
    let mut pairs = vec![("id", sandbox.id.to_string())];
    pairs.extend(sandbox.name.clone().map(|name| ("name", name)));
    pairs.push(("status", sandbox.status.to_string()));
    pairs.extend(sandbox.status_reason.clone().map(|why| ("reason", why)));
    pairs.push((
        "made from",
        match &sandbox.source {
            Source::Template(name) => format!("template {name}"),
            Source::Snapshot(name) => format!("snapshot {name}"),
            Source::ForkOf(id) => format!("fork of {id}"),
            _ => sandbox.template.clone(),
        },
    ));
    pairs.push(("vCPUs", sandbox.vcpus.to_string()));
    pairs.push(("memory", format!("{} MiB", sandbox.memory_mb)));
    pairs.push((
        "idle timeout",
        match sandbox.timeout_sec {
            0 => "none".to_owned(),
            seconds => {
                humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
            }
        },
    ));
    pairs.extend(
        sandbox
            .idle_ms
            .map(|idle| ("idle", format!("{} s", idle / 1000))),
    );
    pairs.push(("network", network(sandbox)));
    pairs.extend(sandbox.host_id.as_ref().map(|id| ("host", id.to_string())));
    let ago = |at| format!("{} ago", output::age(at));
    pairs.push(("created", ago(sandbox.created_at)));
    pairs.extend(sandbox.started_at.map(|at| ("started", ago(at))));
    pairs.extend(sandbox.last_active_at.map(|at| ("last used", ago(at))));
    pairs.extend(sandbox.paused_at.map(|at| ("paused", ago(at))));
    for (name, value) in &sandbox.metadata {
        pairs.push(("metadata", format!("{name}={value}")));
    }
    output::pairs(pairs)
}

fn network(sandbox: &Sandbox) -> String {
    let network = &sandbox.network;
    let mut text = if network.allow_internet {
        "internet".to_owned()
    } else {
        "closed".to_owned()
    };
    for (word, list) in [("allow", &network.allow), ("deny", &network.deny)] {
        if !list.is_empty() {
            text.push_str(&format!(", {word} {}", list.join(" ")));
        }
    }
    text
}
