//! What `wrenn agent` prints.

use serde_json::to_string_pretty;
use wrenn_proto::hostagent::{
    GetHostRequest, GetMetricsRequest, GetSandboxRequest, ListProcessesRequest,
    ListSandboxesRequest, ListSnapshotsRequest, Sandbox, State,
};

use super::client::AgentClient;

#[allow(clippy::print_stdout, reason = "the data that was asked for")]
pub(super) fn line(text: &str) {
    println!("{text}");
}

/// A message as JSON, with the names of the protocol.
pub(super) fn json(message: &impl wrenn_proto::connectrpc::JsonSerialize) -> anyhow::Result<()> {
    line(&to_string_pretty(message)?);
    Ok(())
}

pub(super) async fn list(agent: &AgentClient, as_json: bool) -> anyhow::Result<()> {
    let answer = agent
        .rpc
        .list_sandboxes(ListSandboxesRequest::default())
        .await;
    let answer = agent.check(answer)?.into_owned();
    if as_json {
        return json(&answer);
    }
    let mut rows = vec![["ID", "STATE", "TEMPLATE", "VCPUS", "MEMORY", "IDLE"].map(str::to_owned)];
    for sandbox in &answer.sandboxes {
        let resources = sandbox.resources.as_option().cloned().unwrap_or_default();
        rows.push([
            sandbox.id.clone(),
            state(sandbox),
            sandbox.template.clone(),
            resources.vcpus.to_string(),
            format!("{} MiB", resources.memory_mib),
            format!("{} s", sandbox.idle_ms / 1000),
        ]);
    }
    table(&rows);
    Ok(())
}

pub(super) async fn snapshots(
    agent: &AgentClient,
    request: ListSnapshotsRequest,
    as_json: bool,
) -> anyhow::Result<()> {
    let answer = agent.rpc.list_snapshots(request).await;
    let answer = agent.check(answer)?.into_owned();
    if as_json {
        return json(&answer);
    }
    let head = ["NAME", "FROM", "VCPUS", "MEMORY", "DISK", "CREATED"];
    let mut rows = vec![head.map(str::to_owned)];
    for snapshot in &answer.snapshots {
        let resources = snapshot.resources.as_option().cloned().unwrap_or_default();
        rows.push([
            snapshot.name.clone(),
            snapshot.template.clone(),
            resources.vcpus.to_string(),
            format!("{} MiB", resources.memory_mib),
            format!("{} MiB", snapshot.disk_bytes >> 20),
            snapshot.created_at.clone(),
        ]);
    }
    table(&rows);
    Ok(())
}

pub(super) async fn get(agent: &AgentClient, id: String, as_json: bool) -> anyhow::Result<()> {
    let answer = agent.rpc.get_sandbox(GetSandboxRequest { id }).await;
    let answer = agent.check(answer)?.into_owned();
    if as_json {
        return json(&answer);
    }
    let sandbox = answer.sandbox.into_option().unwrap_or_default();
    let resources = sandbox.resources.as_option().cloned().unwrap_or_default();
    let mut rows = vec![
        ["id", &sandbox.id].map(str::to_owned),
        ["state".to_owned(), state(&sandbox)],
        ["template", &sandbox.template].map(str::to_owned),
        ["vcpus".to_owned(), resources.vcpus.to_string()],
        ["memory".to_owned(), format!("{} MiB", resources.memory_mib)],
        ["created", &sandbox.created_at].map(str::to_owned),
        ["address", &sandbox.address].map(str::to_owned),
        ["token", &sandbox.access_token].map(str::to_owned),
    ];
    if !sandbox.reason.is_empty() {
        rows.push(["reason", &sandbox.reason].map(str::to_owned));
    }
    let mut phases: Vec<_> = sandbox.phases_ms.iter().collect();
    phases.sort_by(|first, second| first.0.cmp(second.0));
    for (phase, ms) in phases {
        rows.push([format!("took, {phase}"), format!("{ms:.0} ms")]);
    }
    for (name, value) in &sandbox.metadata {
        rows.push([format!("metadata, {name}"), value.clone()]);
    }
    table(&rows);
    Ok(())
}

pub(super) async fn processes(
    agent: &AgentClient,
    id: String,
    as_json: bool,
) -> anyhow::Result<()> {
    let answer = agent.rpc.list_processes(ListProcessesRequest { id }).await;
    let answer = agent.check(answer)?.into_owned();
    if as_json {
        return json(&answer);
    }
    let mut rows = vec![["PID", "TAG", "COMMAND"].map(str::to_owned)];
    for process in &answer.processes {
        let words = std::iter::once(&process.program).chain(&process.args);
        let words: Vec<_> = words.map(String::as_str).collect();
        rows.push([
            process.pid.to_string(),
            process.tag.clone(),
            words.join(" "),
        ]);
    }
    table(&rows);
    Ok(())
}

pub(super) async fn metrics(agent: &AgentClient, id: String, as_json: bool) -> anyhow::Result<()> {
    let answer = agent.rpc.get_metrics(GetMetricsRequest { id }).await;
    let found = agent.check(answer)?.into_owned();
    if as_json {
        return json(&found);
    }
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let of = |used: u64, total: u64| format!("{} of {} MiB", used >> 20, total >> 20);
    table(&[
        [
            "processor".to_owned(),
            format!("{:.1} s", found.cpu_seconds),
        ],
        [
            "processor, now".to_owned(),
            format!("{:.0} %", found.guest_cpu_percent),
        ],
        ["memory, host".to_owned(), mib(found.memory_bytes)],
        [
            "memory, guest".to_owned(),
            of(
                found.guest_memory_used_bytes,
                found.guest_memory_total_bytes,
            ),
        ],
        ["disk, host".to_owned(), mib(found.disk_bytes)],
        [
            "disk, guest".to_owned(),
            of(found.guest_disk_used_bytes, found.guest_disk_total_bytes),
        ],
    ]);
    Ok(())
}

pub(super) async fn info(agent: &AgentClient, as_json: bool) -> anyhow::Result<()> {
    let answer = agent.rpc.get_host(GetHostRequest::default()).await;
    let host = agent.check(answer)?.into_owned();
    if as_json {
        return json(&host);
    }
    let of = |used: u64, total: u64| format!("{used} of {total}");
    table(&[
        ["version".to_owned(), host.version.clone()],
        [
            "sandboxes".to_owned(),
            of(host.sandboxes.into(), host.max_sandboxes.into()),
        ],
        [
            "vcpus".to_owned(),
            of(host.vcpus.into(), host.max_vcpus.into()),
        ],
        [
            "memory".to_owned(),
            format!("{} MiB", of(host.memory_mib, host.max_memory_mib)),
        ],
        [
            "disk, free".to_owned(),
            format!("{} MiB", host.free_disk_mib),
        ],
        ["templates".to_owned(), host.templates.join(", ")],
    ]);
    Ok(())
}

fn state(sandbox: &Sandbox) -> String {
    let name = match sandbox.state.as_known() {
        Some(State::STATE_PENDING) => "pending",
        Some(State::STATE_RUNNING) => "running",
        Some(State::STATE_PAUSING) => "pausing",
        Some(State::STATE_PAUSED) => "paused",
        Some(State::STATE_RESUMING) => "resuming",
        Some(State::STATE_ERROR) => "error",
        Some(State::STATE_STOPPED) => "stopped",
        Some(State::STATE_UNSPECIFIED) | None => "unknown",
    };
    name.to_owned()
}

/// Columns as wide as what stands in them.
fn table<const N: usize>(rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let text: Vec<_> = cells
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        line(text.join("  ").trim_end());
    }
}
