//! Messages of an agent, as the API and the store have them.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wrenn_api::file::{ChangeKind, FileEntry, FileKind};
use wrenn_api::sandbox::{MetricsPoint, Network};
use wrenn_api::status::Status;
use wrenn_proto::hostagent as wire;

/// The status of a sandbox's state on its host; `None` for one that this version does not know.
pub(crate) fn status(state: wire::State) -> Option<Status> {
    Some(match state {
        wire::State::STATE_PENDING => Status::Pending,
        wire::State::STATE_RUNNING => Status::Running,
        wire::State::STATE_PAUSING => Status::Pausing,
        wire::State::STATE_PAUSED => Status::Paused,
        wire::State::STATE_RESUMING => Status::Resuming,
        wire::State::STATE_ERROR => Status::Error,
        wire::State::STATE_STOPPED => Status::Stopped,
        wire::State::STATE_UNSPECIFIED => return None,
    })
}

/// What a host says of a sandbox.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observation {
    pub(crate) status: Status,
    pub(crate) reason: Option<String>,
    pub(crate) template: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) timeout_sec: u64,
    pub(crate) idle_ms: u64,
    pub(crate) phases_ms: BTreeMap<String, f64>,
}

impl Observation {
    /// `None` where the host's state is not one that this version knows.
    pub(crate) fn of(sandbox: &wire::Sandbox) -> Option<Self> {
        let resources = sandbox.resources.as_option();
        Some(Self {
            status: status(sandbox.state.as_known()?)?,
            reason: (!sandbox.reason.is_empty()).then(|| sandbox.reason.clone()),
            template: sandbox.template.clone(),
            vcpus: resources.map_or(0, |resources| resources.vcpus),
            memory_mb: resources.map_or(0, |resources| resources.memory_mib),
            timeout_sec: sandbox.timeout_sec,
            idle_ms: sandbox.idle_ms,
            phases_ms: sandbox
                .phases_ms
                .iter()
                .map(|(phase, took)| (phase.clone(), round(*took)))
                .collect(),
        })
    }
}

/// Milliseconds with three digits after the point: a clock has no more.
fn round(milliseconds: f64) -> f64 {
    (milliseconds * 1e3).round() / 1e3
}

pub(crate) fn egress(network: &Network) -> wire::Egress {
    wire::Egress {
        allow_internet: network.allow_internet,
        allow: network.allow.clone(),
        deny: network.deny.clone(),
    }
}

pub(crate) fn file(entry: wire::FileEntry) -> FileEntry {
    FileEntry {
        kind: match entry.kind.as_known() {
            Some(wire::FileKind::FILE_KIND_FILE) => FileKind::File,
            Some(wire::FileKind::FILE_KIND_DIRECTORY) => FileKind::Directory,
            Some(wire::FileKind::FILE_KIND_SYMLINK) => FileKind::Symlink,
            _ => FileKind::Special,
        },
        name: entry.name,
        path: entry.path,
        size: entry.size,
        mode: entry.mode,
        owner: entry.owner,
        group: entry.group,
        symlink_target: (!entry.symlink_target.is_empty()).then_some(entry.symlink_target),
        modified_at: OffsetDateTime::parse(&entry.modified_at, &Rfc3339).ok(),
    }
}

pub(crate) fn change(kind: wire::watch_dir_response::Kind) -> ChangeKind {
    use wire::watch_dir_response::Kind;
    match kind {
        Kind::KIND_CREATED => ChangeKind::Created,
        Kind::KIND_REMOVED => ChangeKind::Removed,
        Kind::KIND_RENAMED => ChangeKind::Renamed,
        Kind::KIND_MODE_CHANGED => ChangeKind::ModeChanged,
        Kind::KIND_WRITTEN | Kind::KIND_UNSPECIFIED => ChangeKind::Written,
    }
}

pub(crate) fn metrics(said: &wire::GetMetricsResponse, at: OffsetDateTime) -> MetricsPoint {
    MetricsPoint {
        at,
        cpu_percent: said.guest_cpu_percent,
        cpu_seconds: round(said.cpu_seconds),
        memory_bytes: said.memory_bytes,
        guest_memory_used_bytes: said.guest_memory_used_bytes,
        guest_memory_total_bytes: said.guest_memory_total_bytes,
        disk_bytes: said.disk_bytes,
        guest_disk_used_bytes: said.guest_disk_used_bytes,
        guest_disk_total_bytes: said.guest_disk_total_bytes,
        network_received_bytes: said.network_received_bytes,
        network_sent_bytes: said.network_sent_bytes,
    }
}
