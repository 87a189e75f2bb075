//! `wrenn agent snapshot` and `wrenn agent fork`.

use anyhow::bail;
use serde_json::json;
use wrenn_core::SandboxId;
use wrenn_proto::hostagent::{
    CreateSnapshotRequest, DeleteSnapshotRequest, ForkSandboxRequest, ListSnapshotsRequest,
};

use super::client::AgentClient;
use super::show;
use crate::{escape, output};

/// Sub-commands of `wrenn agent snapshot`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Give a name to what a sandbox is now. It goes on; the name is a template.
    Create {
        /// The sandbox, running or paused.
        id: String,
        /// The name: a-z, 0-9, '.', '_' and '-'.
        name: String,
    },
    /// List the snapshots that have a name.
    List,
    /// Delete snapshots and print their names. Sandboxes that keep the data of one are named.
    Delete {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Options of `wrenn agent fork`.
#[derive(Debug, clap::Args)]
pub(super) struct ForkArgs {
    /// The sandbox, running or paused. It goes on.
    id: String,
    /// How many are made.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1)]
    count: usize,
}

pub(super) async fn run(agent: &AgentClient, command: Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Create { id, name } => {
            let answer = agent
                .rpc
                .create_snapshot(CreateSnapshotRequest { id, name });
            let answer = agent.check(answer.await)?.into_owned();
            if json {
                return show::json(&answer);
            }
            let snapshot = answer.snapshot.as_option().cloned().unwrap_or_default();
            output::line(&snapshot.build_id)?;
        }
        Command::List => show::snapshots(agent, ListSnapshotsRequest::default(), json).await?,
        Command::Delete { names } => {
            for name in names {
                delete(agent, name, json).await?;
            }
        }
    }
    Ok(())
}

/// Deletes a snapshot and prints its name; names the sandboxes that keep its data.
async fn delete(agent: &AgentClient, name: String, as_json: bool) -> anyhow::Result<()> {
    let request = DeleteSnapshotRequest { name: name.clone() };
    let answer = agent.rpc.delete_snapshot(request).await;
    let users = agent.check(answer)?.into_owned().still_needed_by;
    if as_json {
        return output::json(&json!({ "deleted": name, "stillNeededBy": users }));
    }
    output::line(&name)?;
    if !users.is_empty() {
        drop_eprintln!(
            "wrenn: {}: its data is kept for {}",
            escape::line(&name),
            escape::line(&users.join(", "))
        );
    }
    Ok(())
}

/// Makes children, and prints their ids.
pub(super) async fn fork(agent: &AgentClient, args: ForkArgs, json: bool) -> anyhow::Result<()> {
    let children = (0..args.count).map(|_| SandboxId::random().to_string());
    let request = ForkSandboxRequest {
        id: args.id,
        children: children.collect(),
    };
    let answer = agent.rpc.fork_sandbox(request).await;
    let answer = agent.check(answer)?.into_owned();
    if json {
        show::json(&answer)?;
    } else {
        for sandbox in &answer.sandboxes {
            output::line(&sandbox.id)?;
        }
    }
    let failed: Vec<_> = answer
        .failed
        .iter()
        .map(|(id, why)| format!("{id}: {why}"))
        .collect();
    if !failed.is_empty() {
        bail!("not all could be made: {}", failed.join("; "));
    }
    Ok(())
}
