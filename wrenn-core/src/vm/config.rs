//! What a VMM is told about a machine: the JSON of Firecracker's API, for what is used here.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::rate_limits::{DeviceLimits, RateLimiter};

/// Most vCPUs that a VMM takes.
const MAX_VCPUS: u8 = 32;
/// Least memory in which a guest boots with room for a command, in MiB.
const MIN_MEMORY_MIB: u32 = 96;
/// Most memory that one sandbox may ask for, in MiB.
const MAX_MEMORY_MIB: u32 = 1 << 20;

/// The size of a machine, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    vcpus: u8,
    memory_mib: u32,
}

/// A size that no machine can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidResources {
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs cannot be had; ask for 1 to {MAX_VCPUS}")]
    Vcpus(u64),
    /// Too little or too much memory.
    #[error("{0} MiB of memory cannot be had; ask for {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")]
    Memory(u64),
}

impl Resources {
    /// A machine of `vcpus` virtual CPUs and `memory_mib` MiB of memory.
    ///
    /// # Errors
    /// When a VMM could not run it.
    pub fn new(vcpus: u64, memory_mib: u64) -> Result<Self, InvalidResources> {
        let checked_vcpus = u8::try_from(vcpus)
            .ok()
            .filter(|n| (1..=MAX_VCPUS).contains(n))
            .ok_or(InvalidResources::Vcpus(vcpus))?;
        let checked_memory = u32::try_from(memory_mib)
            .ok()
            .filter(|n| (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(n))
            .ok_or(InvalidResources::Memory(memory_mib))?;
        Ok(Self {
            vcpus: checked_vcpus,
            memory_mib: checked_memory,
        })
    }

    /// Virtual CPUs.
    #[must_use]
    pub fn vcpus(self) -> u8 {
        self.vcpus
    }

    /// Memory, in MiB.
    #[must_use]
    pub fn memory_mib(self) -> u32 {
        self.memory_mib
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory_mib: 512,
        }
    }
}

/// Everything that is said to a VMM before it boots.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// vCPUs and memory.
    pub machine: MachineConfig,
    /// Kernel, initramfs and command line.
    pub boot_source: BootSource,
    /// Disks, the root disk among them.
    pub drives: Vec<Drive>,
    /// Network interfaces.
    pub network_interfaces: Vec<NetworkInterface>,
    /// Whether the guest gets a virtio entropy device.
    pub entropy: bool,
    /// The guest's balloon, if it gets one.
    pub balloon: Option<Balloon>,
}

/// Body of `PUT /machine-config`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Virtual CPUs.
    pub vcpu_count: u8,
    /// Memory, in MiB.
    pub mem_size_mib: u32,
    /// Whether two vCPUs share a core.
    pub smt: bool,
    /// Whether changed pages are tracked for diff snapshots.
    pub track_dirty_pages: bool,
}

impl From<Resources> for MachineConfig {
    fn from(resources: Resources) -> Self {
        Self {
            vcpu_count: resources.vcpus,
            mem_size_mib: resources.memory_mib,
            smt: false,
            track_dirty_pages: false,
        }
    }
}

/// Body of `PUT /boot-source`. Paths are as the VMM sees them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BootSource {
    /// The kernel.
    pub kernel_image_path: PathBuf,
    /// The kernel's command line.
    pub boot_args: String,
    /// The initramfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
}

/// Body of `PUT /drives/{id}`. The path is as the VMM sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drive {
    /// Name of the disk in the API.
    pub drive_id: String,
    /// File or block device.
    pub path_on_host: PathBuf,
    /// Whether the guest boots from it.
    pub is_root_device: bool,
    /// Whether the guest may not write to it.
    pub is_read_only: bool,
    /// What a flush of the guest does.
    pub cache_type: CacheType,
    /// How fast it is.
    pub rate_limiter: RateLimiter,
}

impl Drive {
    /// Name of the root disk in the API.
    pub const ROOT: &str = "rootfs";

    /// The writable root disk at `path`.
    #[must_use]
    pub fn root(path: &Path, limits: DeviceLimits) -> Self {
        Self {
            drive_id: Self::ROOT.to_owned(),
            path_on_host: path.to_owned(),
            is_root_device: true,
            is_read_only: false,
            cache_type: CacheType::Writeback,
            rate_limiter: limits.drive.into(),
        }
    }
}

/// What a guest's flush does on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// Nothing.
    Unsafe,
    /// It is carried through to the host's disk.
    Writeback,
}

/// Body of `PUT /network-interfaces/{id}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// Name of the interface in the API.
    pub iface_id: String,
    /// The guest's hardware address.
    pub guest_mac: String,
    /// Name of the TAP device in the VMM's network namespace.
    pub host_dev_name: String,
    /// How fast the guest receives.
    pub rx_rate_limiter: RateLimiter,
    /// How fast the guest sends.
    pub tx_rate_limiter: RateLimiter,
}

impl NetworkInterface {
    /// Name in the API of a sandbox's only interface.
    pub const ETH0: &str = "eth0";
}

/// Body of `PUT /balloon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// Memory that the guest shall give up, in MiB.
    pub amount_mib: u32,
    /// Whether the guest may take it back when it runs short.
    pub deflate_on_oom: bool,
    /// Whether the guest tells which memory is free, so that neither host nor snapshots keep it.
    pub free_page_reporting: bool,
}

impl Balloon {
    /// One that takes nothing from the guest but hears what is free.
    pub const REPORTING: Self = Self {
        amount_mib: 0,
        deflate_on_oom: false,
        free_page_reporting: true,
    };
}

/// Body of `PUT /actions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Boot.
    InstanceStart,
    /// Ask the guest to shut down.
    SendCtrlAltDel,
}

/// Body of `PUT /snapshot/create`. Paths are as the VMM sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSnapshot {
    /// Which pages of memory are written.
    pub snapshot_type: SnapshotType,
    /// Everything but memory goes here.
    pub snapshot_path: PathBuf,
    /// Memory goes here. An existing file of the memory's size is updated in place.
    pub mem_file_path: PathBuf,
}

/// Which pages of memory a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All.
    Full,
    /// Those that changed since the last snapshot or load; the machine must track them.
    Diff,
}

/// Body of `PUT /snapshot/load`. Paths are as the VMM sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSnapshot {
    /// Everything but memory.
    pub snapshot_path: PathBuf,
    /// Where memory comes from.
    pub mem_backend: MemoryBackend,
    /// Whether changed pages are tracked from now on.
    pub track_dirty_pages: bool,
    /// Whether the guest runs at once.
    pub resume_vm: bool,
    /// Network interfaces whose TAP device has another name than when the snapshot was made.
    pub network_overrides: Vec<NetworkOverride>,
}

/// Where a loaded machine's memory comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend_type", content = "backend_path")]
pub enum MemoryBackend {
    /// A memory file, which is mapped privately.
    File(PathBuf),
    /// The socket of a page-fault server.
    Uffd(PathBuf),
}

/// A network interface on another TAP device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkOverride {
    /// Name of the interface in the API.
    pub iface_id: String,
    /// Name of the TAP device in the VMM's network namespace.
    pub host_dev_name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_sizes_are_refused_with_the_range() {
        assert_eq!(Resources::new(0, 512), Err(InvalidResources::Vcpus(0)));
        assert_eq!(Resources::new(33, 512), Err(InvalidResources::Vcpus(33)));
        assert_eq!(
            Resources::new(256 + 1, 512),
            Err(InvalidResources::Vcpus(257))
        );
        assert_eq!(Resources::new(1, 0), Err(InvalidResources::Memory(0)));
        assert_eq!(
            Resources::new(1, 1 << 40),
            Err(InvalidResources::Memory(1 << 40))
        );
        assert!(Resources::new(32, 128).is_ok());
    }

    #[test]
    fn json_is_that_of_the_api() {
        let drive =
            serde_json::to_value(Drive::root(Path::new("/disk"), DeviceLimits::default())).unwrap();
        assert_eq!(
            drive,
            serde_json::json!({
                "drive_id": "rootfs", "path_on_host": "/disk", "is_root_device": true,
                "is_read_only": false, "cache_type": "Writeback",
                "rate_limiter": {
                    "bandwidth": {"size": 0, "refill_time": 1000},
                    "ops": {"size": 0, "refill_time": 1000},
                },
            })
        );
    }
    #[test]
    fn json_of_a_load_is_that_of_the_api() {
        let load = LoadSnapshot {
            snapshot_path: "/s".into(),
            mem_backend: MemoryBackend::Uffd("/u".into()),
            track_dirty_pages: true,
            resume_vm: false,
            network_overrides: vec![NetworkOverride {
                iface_id: "eth0".to_owned(),
                host_dev_name: "tap0".to_owned(),
            }],
        };
        assert_eq!(
            serde_json::to_value(load).unwrap(),
            serde_json::json!({
                "snapshot_path": "/s",
                "mem_backend": { "backend_type": "Uffd", "backend_path": "/u" },
                "track_dirty_pages": true, "resume_vm": false,
                "network_overrides": [{ "iface_id": "eth0", "host_dev_name": "tap0" }]
            })
        );
    }
}
