//! The JSON of `/snapshot/create` and `/snapshot/load`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::NotImplemented;

/// `/snapshot/create`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshotConfig {
    /// Which pages of memory are written.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// The state file, which is replaced.
    pub snapshot_path: PathBuf,
    /// The memory file. An existing one of the right size is updated in place.
    pub mem_file_path: PathBuf,
}

/// Which pages a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SnapshotType {
    /// All that are not zero.
    #[default]
    Full,
    /// Those that changed since the last snapshot or load, zero or not.
    Diff,
}

/// `/snapshot/load`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, try_from = "LoadSnapshotBody")]
pub struct LoadSnapshotConfig {
    /// The state file.
    pub snapshot_path: PathBuf,
    /// Where memory comes from.
    pub mem_backend: MemoryBackendConfig,
    /// Whether pages that change are recorded from here on.
    pub track_dirty_pages: bool,
    /// Whether the machine runs at once.
    pub resume_vm: bool,
    /// Network interfaces that are on another TAP interface now.
    pub network_overrides: Vec<NetworkOverride>,
    /// Whether the guest's monotonic clock jumps by the time that it was away.
    pub clock_realtime: bool,
}

/// Where memory comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBackendConfig {
    /// The memory file, or the page-fault server's socket.
    pub backend_path: PathBuf,
    /// Which of both.
    pub backend_type: MemoryBackendType,
}

/// Kinds of memory backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum MemoryBackendType {
    /// A memory file.
    File,
    /// A page-fault server.
    Uffd,
}

/// Puts a network interface on another TAP interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NetworkOverride {
    /// The interface's name in the API.
    pub iface_id: String,
    /// The TAP interface of this host.
    pub host_dev_name: String,
}

/// The body as it comes, with the fields that Firecracker keeps for old clients.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadSnapshotBody {
    snapshot_path: PathBuf,
    mem_file_path: Option<PathBuf>,
    mem_backend: Option<MemoryBackendConfig>,
    #[serde(default)]
    enable_diff_snapshots: bool,
    #[serde(default)]
    track_dirty_pages: bool,
    #[serde(default)]
    resume_vm: bool,
    #[serde(default)]
    network_overrides: Vec<NetworkOverride>,
    #[serde(rename = "vsock_override")]
    _vsock_override: Option<NotImplemented>,
    #[serde(default)]
    clock_realtime: bool,
}

impl TryFrom<LoadSnapshotBody> for LoadSnapshotConfig {
    type Error = &'static str;

    fn try_from(body: LoadSnapshotBody) -> Result<Self, &'static str> {
        let mem_backend = match (body.mem_backend, body.mem_file_path) {
            (Some(backend), None) => backend,
            (None, Some(backend_path)) => MemoryBackendConfig {
                backend_path,
                backend_type: MemoryBackendType::File,
            },
            (Some(_), Some(_)) => {
                return Err(
                    "too many fields: either `mem_backend` or `mem_file_path` exclusively is \
                     required",
                );
            }
            (None, None) => {
                return Err("missing field: either `mem_backend` or `mem_file_path` is required");
            }
        };
        Ok(Self {
            snapshot_path: body.snapshot_path,
            mem_backend,
            track_dirty_pages: body.track_dirty_pages || body.enable_diff_snapshots,
            resume_vm: body.resume_vm,
            network_overrides: body.network_overrides,
            clock_realtime: body.clock_realtime,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(body: &str) -> Result<LoadSnapshotConfig, String> {
        serde_json::from_str(body).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_firecracker() {
        let create: CreateSnapshotConfig =
            serde_json::from_str(r#"{"snapshot_path":"s","mem_file_path":"m"}"#).unwrap();
        assert_eq!(create.snapshot_type, SnapshotType::Full);
        let load = load(
            r#"{"snapshot_path":"s","mem_backend":{"backend_type":"Uffd","backend_path":"u"}}"#,
        )
        .unwrap();
        assert_eq!(load.mem_backend.backend_type, MemoryBackendType::Uffd);
        assert!(!load.track_dirty_pages && !load.resume_vm && load.network_overrides.is_empty());
    }

    #[test]
    fn memory_comes_from_one_place() {
        let old = load(r#"{"snapshot_path":"s","mem_file_path":"m","enable_diff_snapshots":true}"#)
            .unwrap();
        assert_eq!(old.mem_backend.backend_type, MemoryBackendType::File);
        assert!(old.track_dirty_pages);
        let none = load(r#"{"snapshot_path":"s"}"#).unwrap_err();
        assert!(none.contains("missing field"), "{none}");
        let both = load(
            r#"{"snapshot_path":"s","mem_file_path":"m",
                "mem_backend":{"backend_type":"File","backend_path":"m"}}"#,
        )
        .unwrap_err();
        assert!(both.contains("too many fields"), "{both}");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let body = r#"{"snapshot_path":"s","mem_file_path":"m","vsock_override":{"uds_path":"u"}}"#;
        assert!(load(body).unwrap_err().contains("not implemented"));
        assert!(load(r#"{"snapshot_path":"s","mem_file_path":"m","x":1}"#).is_err());
    }
}
