//! Runs one virtual machine through a program that speaks the Firecracker HTTP API.
//!
//! ```text
//! Vm::boot ────▶ VmmProcess (own root, user, namespaces and cgroup)
//! Vm::restore       ▲ pidfd: told at once when it ends
//!     └─────────▶ ApiClient ──HTTP on a Unix socket──▶ VMM ──▶ guest
//! ```
//!
//! The program may be `wrenn-vmm` or Firecracker; nothing here knows which. Its life is
//! tied to the [`Vm`] value and never to a request: what ends a VM is [`Vm::kill`], the
//! guest itself, or a later sweep that recognises the process by its sandbox id.

mod api;
mod binary;
mod cgroup;
mod config;
mod jail;
mod process;
mod rate_limits;
mod sys;

pub use api::{ApiClient, ApiError, InstanceInfo};
pub use binary::{FindVmmError, VmmBinary};
pub(crate) use binary::{find_program, is_program};
pub use cgroup::{CgroupError, Cgroups, DiskLimits, Enforced, Limits, VmCgroup};
pub use config::{
    Action, Balloon, BootSource, CacheType, CreateSnapshot, Drive, InvalidResources, LoadSnapshot,
    MachineConfig, MemoryBackend, NetworkInterface, NetworkOverride, Resources, SnapshotType,
    VmConfig,
};
pub use jail::{Device, InvalidVmUsers, JailError, JailFile, JailSpec, VmUser, VmUsers};
pub use process::{ExitReason, LaunchError, LaunchSpec, VmmProcess};
pub use rate_limits::{DeviceLimits, RateLimit, RateLimiter, TokenBucket};
pub(crate) use sys::await_pidfd;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::debug;

use crate::Chain;
use crate::process::ProcessIdentity;
use rate_limits::{DriveUpdate, NetworkInterfaceUpdate};

/// A running virtual machine.
#[derive(Debug)]
pub struct Vm {
    process: VmmProcess,
    api: ApiClient,
    console: PathBuf,
}

/// Why a virtual machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartVmError {
    /// The program did not start.
    #[error("cannot start the VMM")]
    Launch(#[from] LaunchError),
    /// The program ended before it was asked to.
    #[error("the VMM ended at start ({reason}){}", quoted(.output))]
    Ended {
        /// How it ended.
        reason: ExitReason,
        /// The end of what it printed.
        output: String,
    },
    /// Another VMM, or another version of it, wrote the snapshot.
    #[error(
        "{} {} wrote the snapshot, and this is {has} {version}; resume it with the VMM that wrote it",
        .wrote.vmm, .wrote.version
    )]
    OtherVmm {
        /// Who wrote it.
        wrote: WrittenBy,
        /// Name of the VMM that was started.
        has: String,
        /// Its version.
        version: String,
    },
    /// A request of the set-up was refused or failed.
    #[error("the VMM refused {step}{}", quoted(.output))]
    Configure {
        /// What was asked of it.
        step: &'static str,
        /// The end of what it printed.
        output: String,
        /// What it answered.
        #[source]
        source: ApiError,
    },
}

/// Which VMM wrote a snapshot. No other may load it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenBy {
    /// Its name, as its API gives it.
    pub vmm: String,
    /// Its version.
    pub version: String,
}

/// What a fresh VMM is told.
enum FirstWords<'a> {
    Boot(&'a VmConfig),
    Load(&'a LoadSnapshot, DeviceLimits, &'a WrittenBy),
}

/// Describes the machine, step by step, and boots it. A failure names the step.
async fn describe(api: &ApiClient, config: &VmConfig) -> Result<(), (&'static str, ApiError)> {
    api.put("machine-config", &config.machine)
        .await
        .map_err(|e| ("the machine's size", e))?;
    api.put("boot-source", &config.boot_source)
        .await
        .map_err(|e| ("the kernel", e))?;
    for drive in &config.drives {
        let path = format!("drives/{}", drive.drive_id);
        api.put(&path, drive).await.map_err(|e| ("a disk", e))?;
    }
    for interface in &config.network_interfaces {
        let path = format!("network-interfaces/{}", interface.iface_id);
        api.put(&path, interface)
            .await
            .map_err(|e| ("the network interface", e))?;
    }
    if config.entropy {
        let nothing = serde_json::Value::Object(serde_json::Map::new());
        api.put("entropy", &nothing)
            .await
            .map_err(|e| ("the entropy device", e))?;
    }
    if let Some(balloon) = &config.balloon {
        match api.put("balloon", balloon).await {
            // A Firecracker before 1.14. Nothing but room is lost.
            Err(error @ ApiError::Refused { .. }) => tracing::warn!(
                error = %Chain(&error),
                "no reports of free memory from this VMM: snapshots keep what programs have freed"
            ),
            answer => answer.map_err(|e| ("the balloon", e))?,
        }
    }
    api.action(Action::InstanceStart)
        .await
        .map_err(|e| ("to boot", e))
}

/// Loads a snapshot, sets the limits of this host in place of those that the snapshot was made
/// with, and only then lets the guest go on. A failure names the step.
async fn load(
    api: &ApiClient,
    snapshot: &LoadSnapshot,
    limits: DeviceLimits,
) -> Result<(), (&'static str, ApiError)> {
    api.load_snapshot(snapshot)
        .await
        .map_err(|e| ("the snapshot", e))?;
    let drive = DriveUpdate {
        drive_id: Drive::ROOT,
        rate_limiter: limits.drive.into(),
    };
    api.patch(&format!("drives/{}", drive.drive_id), &drive)
        .await
        .map_err(|e| ("the limits of the disk", e))?;
    let interface = NetworkInterfaceUpdate {
        iface_id: NetworkInterface::ETH0,
        rx_rate_limiter: limits.network.into(),
        tx_rate_limiter: limits.network.into(),
    };
    api.patch(
        &format!("network-interfaces/{}", interface.iface_id),
        &interface,
    )
    .await
    .map_err(|e| ("the limits of the network interface", e))?;
    api.resume().await.map_err(|e| ("to resume", e))
}

fn quoted(output: &str) -> String {
    if output.is_empty() {
        String::new()
    } else {
        format!("; it printed: {output}")
    }
}

impl Vm {
    /// Starts the program, describes the machine to it and boots.
    ///
    /// # Errors
    /// When a step fails; the process is gone by then.
    ///
    /// # Cancel safety
    /// Dropping the future kills the process.
    pub async fn boot(spec: LaunchSpec, config: &VmConfig) -> Result<Self, StartVmError> {
        Self::start(spec, FirstWords::Boot(config)).await
    }

    /// Starts the program and has it load a snapshot, if it is the VMM that wrote it. The guest
    /// runs then, under `limits`.
    ///
    /// # Errors
    /// When it is another, or a step fails; the process is gone by then.
    ///
    /// # Cancel safety
    /// Dropping the future kills the process.
    pub async fn restore(
        spec: LaunchSpec,
        snapshot: &LoadSnapshot,
        limits: DeviceLimits,
        wrote: &WrittenBy,
    ) -> Result<Self, StartVmError> {
        Self::start(spec, FirstWords::Load(snapshot, limits, wrote)).await
    }

    async fn start(spec: LaunchSpec, words: FirstWords<'_>) -> Result<Self, StartVmError> {
        let console = spec.console();
        let socket = spec.api_socket();
        let process = VmmProcess::launch(spec).await?;
        let mut vm = Self {
            process,
            api: ApiClient::new(&socket),
            console,
        };
        match vm.set_up(words).await {
            Ok(()) => Ok(vm),
            Err(error) => {
                vm.process.kill().await;
                Err(error)
            }
        }
    }

    async fn set_up(&mut self, words: FirstWords<'_>) -> Result<(), StartVmError> {
        let found = self.wait_for_api().await?;
        if let FirstWords::Load(_, _, wrote) = &words
            && (&wrote.vmm, &wrote.version) != (&found.app_name, &found.vmm_version)
        {
            return Err(StartVmError::OtherVmm {
                wrote: (*wrote).clone(),
                has: found.app_name,
                version: found.vmm_version,
            });
        }
        let steps = async {
            match words {
                FirstWords::Boot(config) => describe(&self.api, config).await,
                FirstWords::Load(snapshot, limits, _) => load(&self.api, snapshot, limits).await,
            }
        };
        let failure = tokio::select! {
            result = steps => match result {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            },
            reason = self.process.exited() => return Err(self.ended(reason)),
        };
        // A VMM that dies closes the connection first; its exit says more.
        if matches!(failure.1, ApiError::Transport { .. })
            && let Ok(reason) =
                tokio::time::timeout(Duration::from_secs(1), self.process.exited()).await
        {
            return Err(self.ended(reason));
        }
        let (step, source) = failure;
        Err(StartVmError::Configure {
            step,
            source,
            output: self.console_tail(),
        })
    }

    /// Waits until the socket answers: at once, then after 1 ms, doubling up to 20 ms.
    async fn wait_for_api(&mut self) -> Result<InstanceInfo, StartVmError> {
        let mut pause = Duration::from_millis(1);
        loop {
            let error = match self.api.info().await {
                Ok(info) => {
                    debug!(
                        vmm = info.app_name,
                        version = info.vmm_version,
                        "the VMM answers"
                    );
                    return Ok(info);
                }
                Err(error) if error.is_not_listening() => error,
                Err(source) => {
                    let output = self.console_tail();
                    return Err(StartVmError::Configure {
                        step: "to answer",
                        source,
                        output,
                    });
                }
            };
            debug!(%error, "the VMM does not answer yet");
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_millis(20)),
                reason = self.process.exited() => return Err(self.ended(reason)),
            }
        }
    }

    fn ended(&self, reason: ExitReason) -> StartVmError {
        StartVmError::Ended {
            reason,
            output: self.console_tail(),
        }
    }

    /// The last lines that the VMM and the guest's console printed.
    #[must_use]
    pub fn console_tail(&self) -> String {
        tail_of(&self.console, 600)
    }

    /// The client of this VM's API.
    #[must_use]
    pub fn api(&self) -> &ApiClient {
        &self.api
    }

    /// The process id of the VMM, as this host sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Ends when the VMM ends, however that happens.
    pub async fn exited(&self) -> ExitReason {
        self.process.exited().await
    }

    /// Takes over a VM that another program started for the sandbox of this directory.
    /// `None` where its process has ended.
    ///
    /// # Errors
    /// When it is unknown whether it has ended. Nothing is changed then.
    pub fn adopt(
        process: &ProcessIdentity,
        cgroup: Option<VmCgroup>,
        directory: &Path,
    ) -> io::Result<Option<Self>> {
        let process = VmmProcess::adopt(process, cgroup)?;
        Ok(process.map(|process| Self {
            process,
            api: ApiClient::new(&LaunchSpec::api_socket_in(directory)),
            console: LaunchSpec::console_in(directory),
        }))
    }

    /// The process, by a name that a later program finds it by.
    ///
    /// # Errors
    /// When it has ended.
    pub fn identity(&self) -> io::Result<ProcessIdentity> {
        ProcessIdentity::of(self.process.pid().cast_signed())
    }

    /// Sets whether it goes on when this is dropped, which ends it otherwise.
    pub fn set_kept(&mut self, kept: bool) {
        self.process.set_kept(kept);
    }

    /// Goes away without it: it keeps running.
    pub fn leave(self) {
        self.process.leave();
    }

    /// Ends the VM without asking the guest. It is over when [`Vm::exited`] says so.
    pub fn end(&self) {
        self.process.end();
    }

    /// Ends the VM without asking the guest, and waits until the process is gone.
    pub async fn kill(self) {
        self.process.kill().await;
    }
}

/// The last `limit` bytes of a file as text, cut at a line where possible.
fn tail_of(path: &Path, limit: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};

    let Ok(mut file) = std::fs::File::open(path) else {
        return String::new();
    };
    let length = file.metadata().map_or(0, |meta| meta.len());
    let start = length.saturating_sub(limit);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(start)).is_err()
        || file.take(limit).read_to_end(&mut bytes).is_err()
    {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = match text.split_once('\n') {
        Some((_, rest)) if start > 0 => rest,
        _ => &text,
    };
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// Has a VMM that refuses one path asked for a machine without disks. Says what came of it
    /// and which paths it was asked for.
    async fn describe_to_one_that_refuses(path: &str) -> (Result<(), &'static str>, Vec<String>) {
        let config = VmConfig {
            machine: MachineConfig::from(Resources::default()),
            boot_source: BootSource {
                kernel_image_path: "/vmlinux".into(),
                boot_args: String::new(),
                initrd_path: None,
            },
            drives: Vec::new(),
            network_interfaces: Vec::new(),
            entropy: true,
            balloon: Some(Balloon::REPORTING),
        };
        let (described, asked) =
            ask_one_that_refuses(path, async |api| describe(&api, &config).await).await;
        (described, asked.into_iter().map(|(path, _)| path).collect())
    }

    /// Has a VMM that refuses one path asked. Says what came of it, and the path and body of each
    /// request.
    async fn ask_one_that_refuses(
        path: &str,
        ask: impl AsyncFnOnce(ApiClient) -> Result<(), (&'static str, ApiError)>,
    ) -> (Result<(), &'static str>, Vec<(String, String)>) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut asked = Vec::new();
        let serving = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = String::new();
                while !request.ends_with('}') {
                    let mut buffer = [0; 4096];
                    let read = stream.read(&mut buffer).await.unwrap();
                    request.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
                }
                let asked_for = request.split(' ').nth(1).unwrap().to_owned();
                let answer = if asked_for == path {
                    "HTTP/1.1 400 \r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}"
                } else {
                    "HTTP/1.1 204 \r\n\r\n"
                };
                let body = request.split_once("\r\n\r\n").unwrap().1.to_owned();
                asked.push((asked_for, body));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let api = ApiClient::new(&socket);
        let answer = tokio::select! {
            answer = ask(api) => answer,
            () = serving => unreachable!("it serves for ever"),
        };
        (answer.map_err(|(step, _)| step), asked)
    }

    #[tokio::test]
    async fn a_vmm_that_hears_no_reports_of_free_memory_boots_all_the_same() {
        let (described, asked) = describe_to_one_that_refuses("/balloon").await;
        assert_eq!(described, Ok(()));
        let paths = [
            "/machine-config",
            "/boot-source",
            "/entropy",
            "/balloon",
            "/actions",
        ];
        assert_eq!(asked, paths);
    }

    fn loaded() -> (LoadSnapshot, DeviceLimits) {
        let snapshot = LoadSnapshot {
            snapshot_path: "/state".into(),
            mem_backend: MemoryBackend::File("/memory".into()),
            track_dirty_pages: true,
            resume_vm: false,
            network_overrides: Vec::new(),
        };
        let network = RateLimit {
            mib_per_second: std::num::NonZeroU32::new(1),
            operations_per_second: None,
        };
        let drive = RateLimit::default();
        (snapshot, DeviceLimits { drive, network })
    }

    #[tokio::test]
    async fn loaded_machine_is_limited_before_it_runs() {
        let (snapshot, limits) = loaded();
        let (loaded, asked) =
            ask_one_that_refuses("", async |api| load(&api, &snapshot, limits).await).await;
        assert_eq!(loaded, Ok(()));
        let paths: Vec<_> = asked.iter().map(|(path, _)| path.as_str()).collect();
        let drive = "/drives/rootfs";
        let interface = "/network-interfaces/eth0";
        assert_eq!(paths, ["/snapshot/load", drive, interface, "/vm"]);
        let body = |at: usize| -> serde_json::Value { serde_json::from_str(&asked[at].1).unwrap() };
        // A limit that the snapshot brought along is lifted.
        assert_eq!(body(1)["rate_limiter"]["bandwidth"]["size"], 0);
        assert_eq!(body(2)["rx_rate_limiter"]["bandwidth"]["size"], 1 << 20);
        assert_eq!(body(2)["tx_rate_limiter"], body(2)["rx_rate_limiter"]);
    }

    #[tokio::test]
    async fn machine_that_cannot_be_limited_stays_paused() {
        let (snapshot, limits) = loaded();
        let refused = "/network-interfaces/eth0";
        let (loaded, asked) =
            ask_one_that_refuses(refused, async |api| load(&api, &snapshot, limits).await).await;
        assert_eq!(loaded, Err("the limits of the network interface"));
        assert_eq!(asked.last().unwrap().0, refused);
    }

    #[tokio::test]
    async fn any_other_refusal_ends_it_there() {
        let (described, asked) = describe_to_one_that_refuses("/entropy").await;
        assert_eq!(described, Err("the entropy device"));
        assert_eq!(asked.last().unwrap(), "/entropy");
    }
}
