//! `wrenn agent pause`.

use anyhow::bail;
use wrenn_proto::hostagent::{PauseAllRequest, PauseSandboxRequest};

use super::client::AgentClient;
use crate::output;

/// Pauses these, or all that run; of all, prints which.
pub(super) async fn run(agent: &AgentClient, ids: Vec<String>, all: bool) -> anyhow::Result<()> {
    for id in ids {
        let answer = agent.rpc.pause_sandbox(PauseSandboxRequest { id });
        agent.check(answer.await)?;
    }
    if !all {
        return Ok(());
    }
    let answer = agent.rpc.pause_all(PauseAllRequest::default()).await;
    let answer = agent.check(answer)?.into_owned();
    for id in &answer.paused {
        output::line(id)?;
    }
    if answer.failed.is_empty() {
        return Ok(());
    }
    let mut failed: Vec<_> = answer.failed.into_iter().collect();
    failed.sort();
    let failed: Vec<_> = failed
        .iter()
        .map(|(id, why)| format!("{id}: {why}"))
        .collect();
    bail!("not all could be paused: {}", failed.join("; "));
}
