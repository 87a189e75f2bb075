//! The plain HTTP half of the protocol: routes, headers and JSON bodies.
//!
//! | method and path | request | answer |
//! |---|---|---|
//! | `GET /health` | – | 204 |
//! | `POST /init` | [`InitRequest`] | 204 |
//! | `GET /metrics` | – | [`Metrics`] |
//! | `GET /envs` | – | JSON object of strings |
//! | `GET /files?path&username` | – | the file |
//! | `POST /files?path&username` | multipart or bytes, [`FILE_MODE_HEADER`] | array of [`FileEntry`] |
//! | `POST /files/compose` | [`ComposeRequest`] | [`FileEntry`] |
//! | `GET /archive?path&username` | – | the directory as a tar archive |
//! | `POST /archive?path&username` | a tar archive | [`Unpacked`] |
//!
//! An error is an [`ErrorBody`] with the status code repeated in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The port that the daemon listens on.
pub const ENVD_PORT: u16 = 49983;

/// Carries the access token, once the daemon was given one.
pub const ACCESS_TOKEN_HEADER: &str = "x-access-token";

/// How often, in seconds, a quiet stream shall send a keep-alive event.
pub const KEEPALIVE_PING_HEADER: &str = "keepalive-ping-interval";

/// Permission bits of an uploaded file, in octal digits; ours, other clients have none. Absent:
/// those of the file that was there, or 644.
pub const FILE_MODE_HEADER: &str = "x-file-mode";

/// Upload headers that start like this become metadata of the file.
pub const METADATA_HEADER_PREFIX: &str = "x-metadata-";

/// Body of `POST /init`: what a guest must be told after every boot and resume. What
/// is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitRequest {
    /// The host's time, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Variables for every process started from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// The token that requests must carry from now on. Empty takes it away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// Who a request without a user acts as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Where a process without a directory starts; the user's home if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// The guest's host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Random bytes from the host, base64, mixed into the kernel's pool, which is
    /// then reseeded: two guests resumed from one snapshot must differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<String>,
    /// Network file systems to mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
}

/// One NFS export and the directory to mount it on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct VolumeMount {
    pub nfs_target: String,
    pub path: String,
}

/// What a file written over `/files` turned into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub path: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: FileEntryType,
    /// Metadata of the upload, if there was any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileEntryType {
    File,
}

/// Body of `POST /files/compose`: joins files, in order, into one and removes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComposeRequest {
    pub source_paths: Vec<String>,
    pub destination: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

/// Answer of `POST /archive`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Entries that were unpacked.
    pub entries: u64,
}

/// Answer of `GET /metrics`. Sizes are in bytes unless their name says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// Seconds since the epoch.
    pub ts: i64,
    pub cpu_count: u32,
    /// Busy share of all processors since the previous look, 0 to 100.
    pub cpu_used_pct: f32,
    pub mem_total: u64,
    pub mem_used: u64,
    pub mem_cache: u64,
    pub mem_total_mib: u64,
    pub mem_used_mib: u64,
    pub disk_used: u64,
    pub disk_total: u64,
}

/// Every error of the plain routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The HTTP status code.
    pub code: u16,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies as other clients write and read them.
    #[test]
    fn bodies_have_the_names_of_the_wire() {
        let request: InitRequest = serde_json::from_str(
            r#"{"timestamp":"2026-01-02T03:04:05Z","envVars":{"A":"1"},"accessToken":"t",
                "defaultUser":"user","defaultWorkdir":"/w","hostname":"h","entropy":"AA==",
                "hyperloopIP":"ignored"}"#,
        )
        .unwrap();
        assert_eq!(request.access_token.as_deref(), Some("t"));
        assert_eq!(request.default_workdir.as_deref(), Some("/w"));
        assert_eq!(request.env_vars.unwrap()["A"], "1");
        assert_eq!(
            serde_json::to_string(&InitRequest::default()).unwrap(),
            "{}"
        );

        let entry = FileEntry {
            path: "/a/b".to_owned(),
            name: "b".to_owned(),
            kind: FileEntryType::File,
            metadata: BTreeMap::new(),
        };
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            r#"{"path":"/a/b","name":"b","type":"file"}"#
        );
        let error = ErrorBody {
            code: 401,
            message: "signature is already expired".to_owned(),
        };
        assert_eq!(
            serde_json::to_string(&error).unwrap(),
            r#"{"code":401,"message":"signature is already expired"}"#
        );
    }
}
