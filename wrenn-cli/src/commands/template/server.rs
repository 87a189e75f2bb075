//! `wrenn template list` of a server.

use std::process::ExitCode;

use wrenn_sdk::Client;
use wrenn_sdk::api::template::Template;

use crate::output;
use crate::size::show;

/// Options of `wrenn template list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn template list
  wrenn template list --json | jq -r '.[].name'")]
pub(super) struct List {
    /// Print names only.
    #[arg(long, short)]
    quiet: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "quiet")]
    pub(super) json: bool,
}

pub(super) async fn list(client: &Client, args: List) -> anyhow::Result<ExitCode> {
    let templates = client.templates().list().all().await?;
    if args.json {
        output::json(&templates)?;
    } else if args.quiet {
        for template in &templates {
            output::line(template.reference())?;
        }
    } else {
        output::print(&table(&templates))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Templates and snapshots.
pub(in crate::commands) fn table(templates: &[Template]) -> String {
    let head = [
        "NAME", "TYPE", "ID", "FROM", "VCPUS", "MEMORY", "DISK", "CREATED",
    ];
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = templates.iter().map(|template| {
        [
            or_dash(template.name.clone()),
            template.kind.to_string(),
            or_dash(template.id.as_ref().map(ToString::to_string)),
            or_dash(template.parent.clone()),
            or_dash(template.vcpus.map(|vcpus| vcpus.to_string())),
            or_dash(template.memory_mb.map(|memory| format!("{memory} MiB"))),
            or_dash(template.disk_bytes.map(show)),
            or_dash(
                template
                    .created_at
                    .map(|at| format!("{} ago", output::age(at))),
            ),
        ]
    });
    output::table(head, &[4, 5, 6], rows)
}
