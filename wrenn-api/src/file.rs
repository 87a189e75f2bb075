//! Files of a sandbox: entries, changes, requests.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::string_enum::string_enum;

/// What `files/write` takes and `files/read` gives, in bytes. There are streams for more.
pub const MAX_FILE_BYTES: usize = 16 << 20;

string_enum! {
    /// The kind of an entry.
    FileKind, "kind" {
        /// A file.
        File = "file",
        /// A directory.
        Directory = "directory",
        /// A symbolic link.
        Symlink = "symlink",
        /// A device, socket or pipe.
        Special = "special",
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileEntry {
    /// Its last name.
    pub name: String,
    /// Its whole path.
    pub path: String,
    /// Its kind.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// The user that owns it.
    pub owner: String,
    /// The group that owns it.
    pub group: String,
    /// Where a symbolic link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
    /// When it was changed.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub modified_at: Option<OffsetDateTime>,
}

/// A path, and the user who uses it: the body of `files/read`, `stream/read`, `stat`,
/// `mkdir` and `remove`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FilePath {
    /// The path; one that is not absolute begins in the user's home.
    #[cfg_attr(feature = "openapi", schema(min_length = 1))]
    pub path: String,
    /// User of the guest; the template's default one unless set.
    #[serde(default)]
    pub user: String,
}

/// The body of `files/list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListFiles {
    /// The directory.
    #[cfg_attr(feature = "openapi", schema(min_length = 1))]
    pub path: String,
    /// User of the guest; the template's default one unless set.
    #[serde(default)]
    pub user: String,
    /// How many levels, 1 to 16.
    #[serde(default = "one")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 16))]
    pub depth: u32,
}

fn one() -> u32 {
    1
}

/// The body of `files/move`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveFile {
    /// The path that it has.
    #[cfg_attr(feature = "openapi", schema(min_length = 1))]
    pub from: String,
    /// The path that it gets.
    #[cfg_attr(feature = "openapi", schema(min_length = 1))]
    pub to: String,
    /// User of the guest; the template's default one unless set.
    #[serde(default)]
    pub user: String,
}

/// The answer to `files/list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileList {
    /// The entries.
    pub items: Vec<FileEntry>,
}

string_enum! {
    /// The kind of a change.
    ChangeKind, "change" {
        /// It was created.
        Created = "created",
        /// It was written to.
        Written = "written",
        /// It was removed.
        Removed = "removed",
        /// It was renamed.
        Renamed = "renamed",
        /// Its permission bits were changed.
        ModeChanged = "mode_changed",
    }
}

/// A message of the WebSocket `files/watch`, in a text frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum WatchMessage {
    /// No change from now on is missed.
    Watching,
    /// Something changed.
    Change {
        /// The path, relative to the watched directory.
        name: String,
        /// What happened.
        kind: ChangeKind,
    },
    /// The watch is over.
    Error {
        /// The kind.
        code: crate::error::ErrorCode,
        /// A sentence that says what to do.
        message: String,
    },
    /// A message of a newer server.
    #[serde(other)]
    Unknown,
}
