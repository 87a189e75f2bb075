//! Sandboxes: create, list, change, fork.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::ApiError;
use crate::id::{HostId, SandboxId};
use crate::status::{OnEnd, Status};

/// The template of a sandbox that names none.
pub const DEFAULT_TEMPLATE: &str = "base";
/// Names and values of metadata together, in bytes.
pub const MAX_METADATA_BYTES: usize = 64 << 10;
/// The most children of one fork.
pub const MAX_FORK_COUNT: u32 = 64;

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Its name, unique in the team among those that are not stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its status.
    pub status: Status,
    /// Why it has this status, where that is not plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
    /// The template that it was created from: its name, or its id.
    pub template: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Seconds without use after which it is paused; 0 for never.
    pub timeout_sec: u64,
    /// Milliseconds since its last use, as its host last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// Its deadline.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub end_at: Option<OffsetDateTime>,
    /// The end at its deadline.
    pub on_end: OnEnd,
    /// Free names and values.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Which addresses it reaches.
    pub network: Network,
    /// How its ports are offered.
    pub ports: Ports,
    /// The host that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    /// How often it was placed on a host.
    pub generation: u64,
    /// Its origin: a template, a snapshot, or another sandbox.
    pub source: Source,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it last began to run.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub started_at: Option<OffsetDateTime>,
    /// When it was last used, as far as the server knows.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_active_at: Option<OffsetDateTime>,
    /// When it was paused.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub paused_at: Option<OffsetDateTime>,
    /// Milliseconds of each phase of its creation or last resume.
    #[serde(default)]
    pub phases_ms: BTreeMap<String, f64>,
}

/// Which addresses a sandbox reaches. Private, link-local and metadata addresses are closed
/// whatever this says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Network {
    /// Whether public addresses are reached that no list names.
    pub allow_internet: bool,
    /// Networks like `192.0.2.0/24`, or addresses. Goes before `deny`.
    pub allow: Vec<String>,
    /// Networks or addresses that are not reached.
    pub deny: Vec<String>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            allow_internet: true,
            allow: Vec::new(),
            deny: Vec::new(),
        }
    }
}

/// How a sandbox's ports are offered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ports {
    /// Whether they are reached without a token.
    pub public: bool,
}

/// The origin of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Source {
    /// It booted from an image template.
    Template(String),
    /// It was restored from a snapshot.
    Snapshot(String),
    /// It is a fork of another sandbox.
    ForkOf(SandboxId),
}

/// The body of `POST /v1/sandboxes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateSandbox {
    /// A template's name or id.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 255))]
    pub template: String,
    /// A name of 1 to 63 lower-case letters, digits and dashes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            min_length = 1,
            max_length = 63,
            pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
        )
    )]
    pub name: Option<String>,
    /// Virtual processors, 1 to 32; the template's, or 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 32))]
    pub vcpus: Option<u32>,
    /// Memory in MiB; the template's, or 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 64, maximum = 1048576))]
    pub memory_mb: Option<u32>,
    /// Seconds without use after which it is paused; 0 for never.
    #[cfg_attr(feature = "openapi", schema(maximum = 3162240000_u64))]
    pub timeout_sec: u64,
    /// Seconds after which it ends, used or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_after_sec: Option<u64>,
    /// The end at that deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_end: Option<OnEnd>,
    /// Whether use wakes it when it is paused.
    pub auto_resume: bool,
    /// Variables of each command's environment.
    pub env: BTreeMap<String, String>,
    /// Free names and values, up to 64 KiB.
    pub metadata: BTreeMap<String, String>,
    /// Which addresses it reaches.
    pub network: Network,
    /// How its ports are offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
    /// Whether the answer comes when it runs, and not before.
    pub wait: bool,
}

impl Default for CreateSandbox {
    fn default() -> Self {
        Self {
            template: DEFAULT_TEMPLATE.to_owned(),
            name: None,
            vcpus: None,
            memory_mb: None,
            timeout_sec: 0,
            end_after_sec: None,
            on_end: None,
            auto_resume: false,
            env: BTreeMap::new(),
            metadata: BTreeMap::new(),
            network: Network::default(),
            ports: None,
            wait: true,
        }
    }
}

/// The body of `PATCH /v1/sandboxes/{id}`. What is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateSandbox {
    /// A new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            min_length = 1,
            max_length = 63,
            pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
        )
    )]
    pub name: Option<String>,
    /// All of its metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Seconds without use after which it is paused; 0 for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 3162240000_u64))]
    pub timeout_sec: Option<u64>,
    /// Seconds from now until it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_after_sec: Option<u64>,
    /// Which addresses it reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

/// The body of `POST …/pause`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PauseSandbox {
    /// Whether its memory is kept.
    pub memory: bool,
}

impl Default for PauseSandbox {
    fn default() -> Self {
        Self { memory: true }
    }
}

/// The body of `POST …/resume`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResumeSandbox {
    /// Another idle timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 3162240000_u64))]
    pub timeout_sec: Option<u64>,
    /// Seconds from now until it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_after_sec: Option<u64>,
}

/// The body of `POST …/ping`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PingSandbox {
    /// Another idle timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 3162240000_u64))]
    pub timeout_sec: Option<u64>,
}

/// The body of `POST …/fork`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForkSandbox {
    /// How many children, 1 to 64.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 64))]
    pub count: u32,
    /// Their names; as many as there are children, or none.
    pub names: Vec<String>,
    /// Seconds from now until they end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_after_sec: Option<u64>,
}

impl Default for ForkSandbox {
    fn default() -> Self {
        Self {
            count: 1,
            names: Vec::new(),
            end_after_sec: None,
        }
    }
}

/// The answer to a fork.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Forked {
    /// One for each child.
    pub items: Vec<ForkedItem>,
}

/// One child of a fork: a sandbox, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "it is sent and not kept")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ForkedItem {
    /// The child.
    Sandbox(Sandbox),
    /// Why there is none.
    Error(ApiError),
}

/// Resource usage of a sandbox, at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MetricsPoint {
    /// When it was measured.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Share of its processors that is in use, in percent, by the guest's account.
    pub cpu_percent: f64,
    /// Processor time of its VMM since it started, in seconds.
    pub cpu_seconds: f64,
    /// Memory that its VMM takes on the host, in bytes.
    pub memory_bytes: u64,
    /// Memory in use in the guest, in bytes.
    pub guest_memory_used_bytes: u64,
    /// Memory of the guest, in bytes.
    pub guest_memory_total_bytes: u64,
    /// Blocks that it takes on its host's disk, in bytes.
    pub disk_bytes: u64,
    /// Use of the guest's disk, in bytes.
    pub guest_disk_used_bytes: u64,
    /// Size of the guest's disk, in bytes.
    pub guest_disk_total_bytes: u64,
    /// Bytes that the guest received.
    pub network_received_bytes: u64,
    /// Bytes that the guest sent.
    pub network_sent_bytes: u64,
}

/// The answer to `GET …/metrics`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Metrics {
    /// Samples, the oldest first.
    pub points: Vec<MetricsPoint>,
}
