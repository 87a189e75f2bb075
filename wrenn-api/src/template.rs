//! Templates and snapshots.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::id::{SandboxId, TemplateId};
use crate::string_enum::string_enum;

string_enum! {
    /// The kind of a template.
    TemplateKind, "template type" {
        /// A root file system: sandboxes boot from it.
        Image = "image",
        /// A snapshot of a VM: sandboxes go on where it was. It fixes vCPUs and memory.
        Snapshot = "snapshot",
    }
}

/// A template: sandboxes are created from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Template {
    /// The id of a snapshot. Image templates go by their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<TemplateId>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: TemplateKind,
    /// Virtual processors that a snapshot fixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB that a snapshot fixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Bytes that it takes on its host's disk, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// The sandbox that a snapshot was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_sandbox_id: Option<SandboxId>,
    /// The template that the sandbox was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// When it was created.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub created_at: Option<OffsetDateTime>,
}

impl Template {
    /// What to send to use it: its name, or its id where it has none.
    #[must_use]
    pub fn reference(&self) -> &str {
        match (&self.name, &self.id) {
            (Some(name), _) => name,
            (None, Some(id)) => id.as_str(),
            (None, None) => "",
        }
    }
}

/// The body of `POST /v1/snapshots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateSnapshot {
    /// The sandbox, by id or name. It goes on.
    pub sandbox_id: String,
    /// A name of 1 to 63 lower-case letters, digits and dashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            min_length = 1,
            max_length = 63,
            pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
        )
    )]
    pub name: Option<String>,
}

/// The answer to `DELETE /v1/snapshots/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeletedSnapshot {
    /// Sandboxes that keep its data until they are destroyed.
    pub still_needed_by: Vec<String>,
}
