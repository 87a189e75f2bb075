//! Lifecycle events.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::id::{HostId, SandboxId};
use crate::status::{HostStatus, Status};
use crate::string_enum::string_enum;

string_enum! {
    /// The kind of an event.
    EventKind, "event type" {
        /// A sandbox was created: its row exists.
        SandboxCreated = "sandbox.created",
        /// The status of a sandbox changed.
        SandboxStatus = "sandbox.status",
        /// A snapshot was created.
        SnapshotCreated = "snapshot.created",
        /// A snapshot was deleted.
        SnapshotDeleted = "snapshot.deleted",
        /// The status of a host changed.
        HostStatus = "host.status",
        /// Events were missed: read the lists again.
        Resync = "resync",
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its place in the sequence of events.
    pub seq: u64,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<SandboxId>,
    /// The status of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Why it has this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The template: its name, or its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    /// The status of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_status: Option<HostStatus>,
}
