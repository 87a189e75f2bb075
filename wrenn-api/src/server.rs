//! Version and limits of a server, hosts, and orphans.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::id::HostId;
use crate::status::HostStatus;

/// The answer to `GET /v1/server`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServerInfo {
    /// The version of the server.
    pub version: String,
    /// `local` for a server that `wrenn up` runs, else `server`.
    pub mode: String,
    /// `open`, `invite` or `closed`.
    pub sign_up: String,
    /// The domain under which ports of sandboxes are reached; empty for none.
    pub domain: String,
    /// Names of features that clients may ask for.
    pub features: Vec<String>,
    /// Limits.
    pub limits: ServerLimits,
}

/// Limits of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServerLimits {
    /// Bytes of a whole file, or of the output of one exec.
    pub whole_body_bytes: u64,
    /// Bytes of metadata.
    pub metadata_bytes: u64,
    /// Children of one fork.
    pub fork_count: u32,
    /// Items of a page.
    pub page_items: u32,
}

/// The body of `POST /v1/auth/local`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LocalLogin {
    /// The ticket of the link that `wrenn up` printed. It can be used once.
    pub ticket: String,
}

/// A host with an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its status.
    pub status: HostStatus,
    /// When it last answered.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_seen_at: Option<OffsetDateTime>,
}

/// A sandbox that a host has and the database does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Orphan {
    /// Its id on the host.
    pub sandbox_id: String,
    /// The host.
    pub host_id: HostId,
    /// The template that the host says it was created from.
    pub template: String,
    /// When it was first seen.
    #[serde(with = "time::serde::rfc3339")]
    pub first_seen_at: OffsetDateTime,
    /// When it was last seen.
    #[serde(with = "time::serde::rfc3339")]
    pub last_seen_at: OffsetDateTime,
}
