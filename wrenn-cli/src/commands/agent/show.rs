//! What `wrenn agent` prints.

use wrenn_proto::hostagent::{
    GetHostRequest, GetMetricsRequest, GetSandboxRequest, ListProcessesRequest,
    ListSandboxesRequest, ListSnapshotsRequest, Sandbox, State,
};

use super::client::AgentClient;
use super::json;
use crate::output;

/// A message as JSON, with the names of the protocol.
pub(super) fn json(message: &impl wrenn_proto::connectrpc::JsonSerialize) -> anyhow::Result<()> {
    output::json(&json::plain(message)?)
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
    let head = ["ID", "STATE", "TEMPLATE", "VCPUS", "MEMORY", "IDLE"];
    let rows = answer.sandboxes.iter().map(|sandbox| {
        let resources = sandbox.resources.as_option().cloned().unwrap_or_default();
        [
            sandbox.id.clone(),
            state(sandbox),
            sandbox.template.clone(),
            resources.vcpus.to_string(),
            format!("{} MiB", resources.memory_mib),
            format!("{} s", sandbox.idle_ms / 1000),
        ]
    });
    output::print(&output::table(head, &[3, 4, 5], rows))
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
    let rows = answer.snapshots.iter().map(|snapshot| {
        let resources = snapshot.resources.as_option().cloned().unwrap_or_default();
        [
            snapshot.name.clone(),
            snapshot.template.clone(),
            resources.vcpus.to_string(),
            format!("{} MiB", resources.memory_mib),
            format!("{} MiB", snapshot.disk_bytes >> 20),
            snapshot.created_at.clone(),
        ]
    });
    output::print(&output::table(head, &[2, 3, 4], rows))
}

pub(super) async fn get(agent: &AgentClient, id: String, as_json: bool) -> anyhow::Result<()> {
    let answer = agent.rpc.get_sandbox(GetSandboxRequest { id }).await;
    let answer = agent.check(answer)?.into_owned();
    if as_json {
        return json(&answer);
    }
    let sandbox = answer.sandbox.into_option().unwrap_or_default();
    let resources = sandbox.resources.as_option().cloned().unwrap_or_default();
    let mut pairs = vec![
        ("id", sandbox.id.clone()),
        ("state", state(&sandbox)),
        ("template", sandbox.template.clone()),
        ("vcpus", resources.vcpus.to_string()),
        ("memory", format!("{} MiB", resources.memory_mib)),
        ("created", sandbox.created_at.clone()),
        ("address", sandbox.address.clone()),
        ("token", sandbox.access_token.clone()),
    ];
    if !sandbox.reason.is_empty() {
        pairs.push(("reason", sandbox.reason.clone()));
    }
    let mut phases: Vec<_> = sandbox.phases_ms.iter().collect();
    phases.sort_by_key(|(phase, _)| json::position(phase));
    for (phase, ms) in phases {
        pairs.push(("took", format!("{ms:.1} ms, {phase}")));
    }
    let mut metadata: Vec<_> = sandbox.metadata.iter().collect();
    metadata.sort();
    for (name, value) in metadata {
        pairs.push(("metadata", format!("{name}={value}")));
    }
    output::print(&output::pairs(pairs))
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
    let rows = answer.processes.iter().map(|process| {
        let words = std::iter::once(&process.program).chain(&process.args);
        let words: Vec<_> = words.map(String::as_str).collect();
        [
            process.pid.to_string(),
            process.tag.clone(),
            words.join(" "),
        ]
    });
    output::print(&output::table(["PID", "TAG", "COMMAND"], &[0], rows))
}

pub(super) async fn metrics(agent: &AgentClient, id: String, as_json: bool) -> anyhow::Result<()> {
    let answer = agent.rpc.get_metrics(GetMetricsRequest { id }).await;
    let found = agent.check(answer)?.into_owned();
    if as_json {
        return json(&found);
    }
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let of = |used: u64, total: u64| format!("{} of {} MiB", used >> 20, total >> 20);
    output::print(&output::pairs([
        ("processor", format!("{:.1} s", found.cpu_seconds)),
        (
            "processor, now",
            format!("{:.0} %", found.guest_cpu_percent),
        ),
        ("memory, host", mib(found.memory_bytes)),
        (
            "memory, guest",
            of(
                found.guest_memory_used_bytes,
                found.guest_memory_total_bytes,
            ),
        ),
        ("disk, host", mib(found.disk_bytes)),
        (
            "disk, guest",
            of(found.guest_disk_used_bytes, found.guest_disk_total_bytes),
        ),
    ]))
}

pub(super) async fn info(agent: &AgentClient, as_json: bool) -> anyhow::Result<()> {
    let answer = agent.rpc.get_host(GetHostRequest::default()).await;
    let host = agent.check(answer)?.into_owned();
    if as_json {
        return json(&host);
    }
    let of = |used: u64, total: u64| format!("{used} of {total}");
    output::print(&output::pairs([
        ("version", host.version.clone()),
        (
            "sandboxes",
            of(host.sandboxes.into(), host.max_sandboxes.into()),
        ),
        ("vcpus", of(host.vcpus.into(), host.max_vcpus.into())),
        (
            "memory",
            format!("{} MiB", of(host.memory_mib, host.max_memory_mib)),
        ),
        ("disk, free", format!("{} MiB", host.free_disk_mib)),
        ("templates", host.templates.join(", ")),
    ]))
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
