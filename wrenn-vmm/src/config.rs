//! The JSON of the API and of the configuration file: Firecracker's names and defaults
//! (`src/firecracker/swagger/firecracker.yaml`). Unknown fields are refused, so that a
//! setting which this VMM does not have is never dropped in silence.

use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::memory::HugePages;
use crate::virtio::block::CacheType;

/// The most vCPUs of one machine.
pub const VCPUS_MAX: u8 = 32;

/// `/machine-config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpu_count: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
    /// Whether neighbouring vCPUs claim to be threads of one core.
    #[serde(default)]
    pub smt: bool,
    /// Only `None` is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether pages that change are recorded, for snapshots of the difference.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// What backs guest memory.
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// CPU templates: none of Firecracker's is implemented, and their names are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuTemplate {
    /// The guest sees what the host has.
    None,
}

/// A change of the machine: fields that are present.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfigUpdate {
    /// See [`MachineConfig`].
    pub vcpu_count: Option<u8>,
    /// See [`MachineConfig`].
    pub mem_size_mib: Option<u64>,
    /// See [`MachineConfig`].
    pub smt: Option<bool>,
    /// See [`MachineConfig`].
    pub cpu_template: Option<CpuTemplate>,
    /// See [`MachineConfig`].
    pub track_dirty_pages: Option<bool>,
    /// See [`MachineConfig`].
    pub huge_pages: Option<HugePages>,
}

impl From<MachineConfig> for MachineConfigUpdate {
    fn from(config: MachineConfig) -> Self {
        Self {
            vcpu_count: Some(config.vcpu_count),
            mem_size_mib: Some(config.mem_size_mib),
            smt: Some(config.smt),
            cpu_template: config.cpu_template,
            track_dirty_pages: Some(config.track_dirty_pages),
            huge_pages: Some(config.huge_pages),
        }
    }
}

/// A machine that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineConfigError {
    /// Too many or too few vCPUs.
    #[error(
        "The number of vCPUs must be greater than 0, at most {VCPUS_MAX} and must be 1 or an \
         even number if SMT is enabled."
    )]
    VcpuCount,
    /// Memory size.
    #[error("The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    MemorySize,
}

impl MachineConfig {
    /// This configuration with `update` applied.
    ///
    /// # Errors
    /// If the result would be impossible.
    pub fn updated(&self, update: &MachineConfigUpdate) -> Result<Self, MachineConfigError> {
        let new = Self {
            vcpu_count: update.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: update.smt.unwrap_or(self.smt),
            cpu_template: None,
            track_dirty_pages: update.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(self.huge_pages),
        };
        let odd_threads = new.smt && new.vcpu_count > 1 && new.vcpu_count % 2 == 1;
        if new.vcpu_count == 0 || new.vcpu_count > VCPUS_MAX || odd_threads {
            return Err(MachineConfigError::VcpuCount);
        }
        let granularity = new.huge_pages.granularity_mib();
        if new.mem_size_mib == 0 || !new.mem_size_mib.is_multiple_of(granularity) {
            return Err(MachineConfigError::MemorySize);
        }
        Ok(new)
    }
}

/// `/boot-source`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSourceConfig {
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel_image_path: PathBuf,
    /// The initrd, if any.
    pub initrd_path: Option<PathBuf>,
    /// The kernel command line; a default without a console if absent.
    pub boot_args: Option<String>,
}

/// `/drives/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// The drive's name in the API; its beginning is the serial number in the guest.
    pub drive_id: String,
    /// Partition to boot from, if it is the root drive.
    pub partuuid: Option<String>,
    /// Whether the guest boots from it. It then is `/dev/vda`.
    pub is_root_device: bool,
    /// What a guest's flush means.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Whether the guest can only read it.
    pub is_read_only: Option<bool>,
    /// The file or block device behind it.
    pub path_on_host: Option<PathBuf>,
    /// Limits of what the guest reads and writes together.
    pub rate_limiter: Option<RateLimiterConfig>,
    /// Only `Sync` is known.
    pub io_engine: Option<IoEngine>,
    /// Drives in another process are not implemented.
    pub socket: Option<PathBuf>,
}

/// How a drive does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// One request after another, on the drive's own thread.
    Sync,
    /// With io_uring. Not implemented.
    Async,
}

/// `PATCH /drives/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// Which drive.
    pub drive_id: String,
    /// The new file behind it.
    pub path_on_host: Option<PathBuf>,
    /// The limits that change.
    pub rate_limiter: Option<RateLimiterConfig>,
}

/// `/network-interfaces/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceConfig {
    /// The interface's name in the API.
    pub iface_id: String,
    /// The TAP interface of the host.
    pub host_dev_name: String,
    /// The guest's address; it picks one itself if absent.
    pub guest_mac: Option<MacAddress>,
    /// The largest packet that the guest is told.
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits of what the guest sends.
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

impl NetworkInterfaceConfig {
    /// Applies an update.
    pub fn update(&mut self, update: &NetworkInterfaceUpdate) {
        self.rx_rate_limiter =
            RateLimiterConfig::updated(self.rx_rate_limiter, update.rx_rate_limiter);
        self.tx_rate_limiter =
            RateLimiterConfig::updated(self.tx_rate_limiter, update.tx_rate_limiter);
    }
}

/// `PATCH /network-interfaces/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceUpdate {
    /// Which interface.
    pub iface_id: String,
    /// The limits that change.
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// The limits that change.
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

/// `/entropy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {
    /// Limits are not implemented.
    pub rate_limiter: Option<RateLimiterConfig>,
}

/// `/balloon`. The host never asks for memory back, so that only reporting is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// MiB that the guest shall give up. Only 0 is implemented.
    pub amount_mib: u32,
    /// Whether the guest takes pages back rather than end a process for want of memory.
    pub deflate_on_oom: bool,
    /// Seconds between two statistics. Only 0, for none, is implemented.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Free pages when the host asks. Not implemented.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Free pages as they come about: they take no room in host and snapshots.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// Limits of a device; a bucket that is absent limits nothing, and is not changed by a PATCH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes.
    pub bandwidth: Option<TokenBucketConfig>,
    /// Requests.
    pub ops: Option<TokenBucketConfig>,
}

impl RateLimiterConfig {
    /// Without the buckets that limit nothing, or none if neither does.
    pub fn limiting(self) -> Option<Self> {
        let limiting = Self {
            bandwidth: self.bandwidth.filter(TokenBucketConfig::is_limit),
            ops: self.ops.filter(TokenBucketConfig::is_limit),
        };
        (limiting.bandwidth.is_some() || limiting.ops.is_some()).then_some(limiting)
    }

    /// The limits `old`, if any, once those that are present in `update` have changed.
    pub fn updated(old: Option<Self>, update: Option<Self>) -> Option<Self> {
        let Some(update) = update else {
            return old;
        };
        Self {
            bandwidth: update.bandwidth.or(old.and_then(|old| old.bandwidth)),
            ops: update.ops.or(old.and_then(|old| old.ops)),
        }
        .limiting()
    }
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketConfig {
    /// Tokens in a full bucket.
    pub size: u64,
    /// Extra tokens at the start.
    pub one_time_burst: Option<u64>,
    /// Milliseconds that an empty bucket takes to fill.
    pub refill_time: u64,
}

impl TokenBucketConfig {
    /// Whether it limits anything: no size or no time means that it does not.
    pub const fn is_limit(&self) -> bool {
        self.size > 0 && self.refill_time > 0
    }
}

/// `/logger`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerConfig {
    /// File or named pipe.
    pub log_path: Option<PathBuf>,
    /// Least important level that is written; `Info` if absent.
    pub level: Option<LogLevel>,
    /// Whether lines carry their level.
    pub show_level: Option<bool>,
    /// Whether lines carry file and line.
    pub show_log_origin: Option<bool>,
    /// Only lines of modules that start so.
    pub module: Option<String>,
}

/// Levels of the log, in any case and with Firecracker's old name for `Warn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Everything.
    Trace,
    /// Much.
    Debug,
    /// What happens.
    Info,
    /// What should not happen.
    Warn,
    /// What must not happen.
    Error,
}

impl std::str::FromStr for LogLevel {
    type Err = UnknownLogLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLogLevel> {
        match text.to_ascii_lowercase().as_str() {
            "off" => Ok(Self::Off),
            "trace" => Ok(Self::Trace),
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warn" | "warning" => Ok(Self::Warn),
            "error" => Ok(Self::Error),
            _ => Err(UnknownLogLevel(text.to_owned())),
        }
    }
}

/// No such level.
#[derive(Debug, thiserror::Error)]
#[error("unknown log level {0:?}; known are Off, Error, Warn, Info, Debug and Trace")]
pub struct UnknownLogLevel(String);

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Trace => Self::Trace,
            LogLevel::Debug => Self::Debug,
            LogLevel::Info => Self::Info,
            LogLevel::Warn => Self::Warn,
            LogLevel::Error => Self::Error,
        }
    }
}

/// `/metrics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// File or named pipe.
    pub metrics_path: PathBuf,
}

/// `/actions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionConfig {
    /// What to do.
    pub action_type: ActionType,
}

/// What `/actions` can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ActionType {
    /// Write the metrics.
    FlushMetrics,
    /// Start the machine.
    InstanceStart,
    /// Press the keys.
    SendCtrlAltDel,
}

/// `PATCH /vm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// What the machine shall be.
    pub state: RequestedState,
}

/// What a machine can be asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum RequestedState {
    /// Stopped between two instructions.
    Paused,
    /// Running again.
    Resumed,
}

/// The whole configuration: `GET /vm/config`, and the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmConfig {
    /// See the parts.
    #[serde(default)]
    pub drives: Vec<DriveConfig>,
    /// See the parts.
    pub boot_source: BootSourceConfig,
    /// See the parts.
    pub logger: Option<LoggerConfig>,
    /// See the parts.
    pub machine_config: Option<MachineConfig>,
    /// See the parts.
    pub metrics: Option<MetricsConfig>,
    /// See the parts.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterfaceConfig>,
    /// See the parts.
    pub entropy: Option<EntropyConfig>,
    /// See the parts.
    pub balloon: Option<BalloonConfig>,
    /// Not implemented; must be absent or null.
    pub cpu_config: Option<NotImplemented>,
    /// Not implemented; must be absent or null.
    pub mmds_config: Option<NotImplemented>,
    /// Not implemented; must be absent or null.
    pub vsock: Option<NotImplemented>,
    /// Not implemented; must be absent or null.
    pub memory_hotplug: Option<NotImplemented>,
}

/// The value of a setting that Firecracker has and this VMM has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotImplemented {}

impl<'de> Deserialize<'de> for NotImplemented {
    fn deserialize<D: Deserializer<'de>>(_deserializer: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("this setting is not implemented"))
    }
}

impl Serialize for NotImplemented {
    fn serialize<S: Serializer>(&self, _serializer: S) -> Result<S::Ok, S::Error> {
        match *self {}
    }
}

/// `GET /`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceInfo {
    /// The id from the command line.
    pub id: String,
    /// What the machine is doing.
    pub state: InstanceState,
    /// This program's version.
    pub vmm_version: String,
    /// This program's name.
    pub app_name: String,
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum InstanceState {
    /// Being configured.
    #[default]
    #[serde(rename = "Not started")]
    NotStarted,
    /// Stopped between two instructions.
    Paused,
    /// Running.
    Running,
}

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

/// Not a hardware address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no MAC address such as 06:00:ac:10:00:02")]
pub struct InvalidMacAddress(String);

impl std::str::FromStr for MacAddress {
    type Err = InvalidMacAddress;

    fn from_str(text: &str) -> Result<Self, InvalidMacAddress> {
        let invalid = || InvalidMacAddress(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(invalid)?;
            let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            *byte = match u8::from_str_radix(part, 16) {
                Ok(value) if digits => value,
                _ => return Err(invalid()),
            };
        }
        if parts.next().is_some() {
            Err(invalid())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl std::fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses() {
        let mac: MacAddress = "06:00:AC:10:00:02".parse().unwrap();
        assert_eq!(mac.to_string(), "06:00:ac:10:00:02");
        for wrong in [
            "",
            "06:00:ac:10:00",
            "06:00:ac:10:00:02:03",
            "6:0:ac:10:0:2",
            "+6:00:ac:10:00:02",
            "06-00-ac-10-00-02",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn machine_limits() {
        let machine = |vcpus, memory, smt| {
            MachineConfig::default().updated(&MachineConfigUpdate {
                vcpu_count: Some(vcpus),
                mem_size_mib: Some(memory),
                smt: Some(smt),
                ..Default::default()
            })
        };
        assert!(machine(32, 512, true).is_ok());
        assert!(machine(1, 1, true).is_ok());
        for (vcpus, smt) in [(0, false), (33, false), (255, false), (3, true)] {
            assert_eq!(machine(vcpus, 512, smt), Err(MachineConfigError::VcpuCount));
        }
        assert_eq!(machine(1, 0, false), Err(MachineConfigError::MemorySize));
    }

    #[test]
    fn configuration_file_as_firecracker_writes_it() {
        let config: VmConfig = serde_json::from_str(
            r#"{
              "balloon": null,
              "drives": [{"drive_id": "rootfs", "partuuid": null, "is_root_device": true,
                "cache_type": "Unsafe", "is_read_only": false, "path_on_host": "/root.ext4",
                "rate_limiter": null, "io_engine": "Sync", "socket": null}],
              "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0",
                "initrd_path": null},
              "cpu-config": null, "logger": null,
              "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false,
                "track_dirty_pages": false, "huge_pages": "None"},
              "metrics": null, "mmds-config": null,
              "network-interfaces": [], "vsock": null, "entropy": null
            }"#,
        )
        .unwrap();
        assert_eq!(config.drives[0].drive_id, "rootfs");
        assert_eq!(config.machine_config.unwrap().vcpu_count, 2);
    }

    #[test]
    fn updated_limits_keep_absent_buckets() {
        let limits = |json: &str| serde_json::from_str::<RateLimiterConfig>(json).unwrap();
        let both = limits(
            r#"{"bandwidth": {"size": 1, "refill_time": 2}, "ops": {"size": 3, "refill_time": 4}}"#,
        );
        let ops = limits(r#"{"ops": {"size": 5, "one_time_burst": 6, "refill_time": 7}}"#);
        let no_bytes = limits(r#"{"bandwidth": {"size": 0, "refill_time": 9}}"#);
        let updated = RateLimiterConfig::updated(Some(both), Some(ops)).unwrap();
        assert_eq!((updated.bandwidth, updated.ops), (both.bandwidth, ops.ops));
        assert_eq!(
            RateLimiterConfig::updated(Some(updated), None),
            Some(updated)
        );
        let updated = RateLimiterConfig::updated(Some(updated), Some(no_bytes));
        assert_eq!(updated, Some(ops));
        assert_eq!(RateLimiterConfig::updated(None, Some(no_bytes)), None);
    }

    #[test]
    fn settings_that_are_not_implemented_are_refused() {
        let text = r#"{"boot-source": {"kernel_image_path": "k"}, "vsock": {"guest_cid": 3}}"#;
        let error = serde_json::from_str::<VmConfig>(text).unwrap_err();
        assert!(error.to_string().contains("not implemented"), "{error}");
    }
}
