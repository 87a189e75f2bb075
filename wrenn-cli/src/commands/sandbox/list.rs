//! `wrenn sandbox list`.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use wrenn_sdk::api::status::Status;
use wrenn_sdk::{Client, ListOptions, Sandbox};

use crate::variable::parse_pair;
use crate::{completion, output};

/// How old a watched list may be: times move on without events.
const REFRESH: Duration = Duration::from_secs(5);
/// How often a watched list is drawn at most.
const SHORTEST: Duration = Duration::from_millis(300);

/// Options of `wrenn sandbox list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox list
  wrenn sandbox list --status running --metadata project=web
  wrenn sandbox list -q --status paused | xargs -r wrenn sandbox destroy
  wrenn sandbox list --json | jq -r '.[].id'
  wrenn sandbox list --watch

Destroyed ones are shown with --status stopped.")]
pub(super) struct Args {
    /// Only those with this status: pending, running, pausing, paused, resuming, error,
    /// missing, stopped; may be given often.
    #[arg(long, value_name = "STATUS")]
    status: Vec<Status>,
    /// Only those made from this template or snapshot.
    #[arg(long, value_name = "NAME", add = completion::templates())]
    template: Option<String>,
    /// Only the one with this name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only those with this metadata; may be given often.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_pair)]
    metadata: Vec<(String, String)>,
    /// Print ids only.
    #[arg(long, short)]
    quiet: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Show changes as they happen, until Ctrl-C.
    #[arg(long, short, conflicts_with_all = ["quiet", "json"])]
    watch: bool,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    if args.watch {
        return watch(client, &args).await;
    }
    let sandboxes = client.sandboxes().list(options(&args)).all().await?;
    if args.json {
        let all: Vec<_> = sandboxes.iter().map(Sandbox::info).collect();
        output::json(&all)?;
    } else if args.quiet {
        for sandbox in &sandboxes {
            output::line(sandbox.id().as_str())?;
        }
    } else {
        output::print(&table(&sandboxes))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn options(args: &Args) -> ListOptions {
    let mut options = ListOptions::new();
    for status in &args.status {
        options = options.status(*status);
    }
    if let Some(template) = &args.template {
        options = options.template(template);
    }
    if let Some(name) = &args.name {
        options = options.name(name);
    }
    for (name, value) in &args.metadata {
        options = options.metadata(name, value);
    }
    options
}

fn table(sandboxes: &[Sandbox]) -> String {
    let head = [
        "ID", "NAME", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "CREATED",
    ];
    let rows = sandboxes.iter().map(|sandbox| {
        let info = sandbox.info();
        [
            info.id.to_string(),
            info.name.clone().unwrap_or_else(|| "-".to_owned()),
            info.status.to_string(),
            info.template.clone(),
            info.vcpus.to_string(),
            format!("{} MiB", info.memory_mb),
            format!("{} ago", output::age(info.created_at)),
        ]
    });
    output::table(head, &[4, 5], rows)
}

async fn watch(client: &Client, args: &Args) -> anyhow::Result<ExitCode> {
    // Clears the screen and goes to its corner.
    const CLEAR: &str = "\u{1b}[H\u{1b}[2J";
    let terminal = io::stdout().is_terminal();
    let mut events = client.events();
    let mut shown = String::new();
    loop {
        let sandboxes = client.sandboxes().list(options(args)).all().await?;
        let table = table(&sandboxes);
        let is_read = if terminal {
            output::print_while_read(&format!("{CLEAR}{table}"))?
        } else if table != shown {
            let is_read = output::print_while_read(&format!("{table}\n"))?;
            shown = table;
            is_read
        } else {
            true
        };
        if !is_read {
            return Ok(ExitCode::SUCCESS);
        }
        let changed = async {
            // Where events cannot be had, the list is read every few seconds.
            if events.next().await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(SHORTEST).await;
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(REFRESH) => {}
        }
    }
}
