//! Creating a sandbox, step by step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use tracing::{Instrument, info, info_span};

use super::directory::{DirectoryError, SandboxDirectory};
use super::disk::{self, CopyDiskError};
use super::host::Shared;
use super::{DestroyError, Sandbox, images};
use crate::SandboxId;
use crate::guest::{AccessToken, ENVD_PORT, GuestClient, GuestError, InitRequest, UnhealthyError};
use crate::network::{CreateSlotError, NetworkSlot};
use crate::template::{OpenTemplateError, Template};
use crate::vm::{
    BootSource, Drive, ExitReason, LaunchSpec, MachineConfig, NetworkInterface, Resources,
    StartVmError, Vm, VmConfig,
};

/// The kernel's command line, but for what differs between sandboxes.
///
/// The console is there for a kernel's last words and quiet otherwise, since every
/// character of it is an exit from the guest. Nothing is probed that no VMM here has:
/// keyboard multiplexers, PCI. A panic ends the VM at once rather than leave it hanging.
const KERNEL_ARGS: &str = "console=ttyS0 quiet loglevel=3 8250.nr_uarts=1 reboot=k panic=-1 \
    pci=off i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on cryptomgr.notests \
    audit=0 root=/dev/vda rw init=/usr/local/bin/wrenn-envd";

/// What a sandbox is to be.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// Its id; a new one unless set.
    pub id: SandboxId,
    /// The template that it is made from.
    pub template: String,
    /// Its size.
    pub resources: Resources,
    /// Environment of every command, on top of the template's.
    pub env: BTreeMap<String, String>,
    /// Who may use the daemon in its guest.
    pub access: GuestAccess,
}

/// Who may use the daemon in a guest, root's rights included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestAccess {
    /// Who has the token that was made for this sandbox.
    #[default]
    Token,
    /// Everybody who can reach it: this host, and what runs in the guest itself.
    Open,
}

impl SandboxConfig {
    /// A sandbox of the default size from the template of this name.
    #[must_use]
    pub fn from_template(name: impl Into<String>) -> Self {
        Self {
            id: SandboxId::random(),
            template: name.into(),
            resources: Resources::default(),
            env: BTreeMap::new(),
            access: GuestAccess::default(),
        }
    }
}

/// Why a sandbox was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateSandboxError {
    /// Its template cannot be used.
    #[error(transparent)]
    Template(#[from] OpenTemplateError),
    /// The host's memory would not hold it.
    #[error(
        "{asked_mib} MiB of memory are asked for and {available_mib} MiB are free on this host; ask for less"
    )]
    Memory {
        /// What was asked for.
        asked_mib: u32,
        /// What is there.
        available_mib: u64,
    },
    /// Its directory could not be made.
    #[error("cannot make the sandbox's directory")]
    Directory(#[from] DirectoryError),
    /// Its disk could not be made.
    #[error("cannot make the sandbox's disk")]
    Disk(#[from] CopyDiskError),
    /// Its network slot could not be made.
    #[error("cannot make the sandbox's network slot")]
    Slot(#[from] CreateSlotError),
    /// Its VM did not start.
    #[error("cannot start the sandbox's VM")]
    Vm(#[from] StartVmError),
    /// Its guest did not come up.
    #[error("the guest did not come up{}", quoted(.console))]
    Unhealthy {
        /// The end of the guest's console.
        console: String,
        /// What was met.
        #[source]
        source: UnhealthyError,
    },
    /// Its VM ended while it booted.
    #[error("the VM ended while the guest booted ({reason}){}", quoted(.console))]
    EndedAtBoot {
        /// How it ended.
        reason: ExitReason,
        /// The end of the guest's console.
        console: String,
    },
    /// Its guest could not be told what it must know.
    #[error("cannot set up the guest")]
    Init(#[from] GuestError),
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

fn quoted(console: &str) -> String {
    if console.is_empty() {
        String::new()
    } else {
        format!("; its console says: {console}")
    }
}

/// How long each step of a creation took. Disk and slot are made at the same time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Copying the disk.
    pub disk: Duration,
    /// Making the network slot.
    pub slot: Duration,
    /// From the start of the VMM's process until the guest runs.
    pub vmm: Duration,
    /// From the start of the VMM's process until the guest's daemon answers.
    pub healthy: Duration,
    /// Telling the guest what it must know.
    pub init: Duration,
    /// All of it.
    pub total: Duration,
}

impl Sandbox {
    pub(super) async fn create(
        host: &Shared,
        config: SandboxConfig,
    ) -> Result<Self, CreateSandboxError> {
        let span = info_span!("create", sandbox_id = %config.id, template = config.template);
        async {
            let begun = Instant::now();
            let template = Template::open(&host.root, &config.template)?;
            check_memory(config.resources)?;
            let directory = SandboxDirectory::create(&host.root, config.id.clone())?;
            let mut timings = Timings::default();
            let slot = prepare(host, &template, &directory, &mut timings).await?;
            let mut sandbox = boot(host, &config, &template, directory, slot, timings).await?;
            sandbox.timings.total = begun.elapsed();
            info!(timings = ?sandbox.timings, "the sandbox runs");
            Ok(sandbox)
        }
        .instrument(span)
        .await
    }
}

/// Makes disk and slot at the same time.
async fn prepare(
    host: &Shared,
    template: &Template,
    directory: &SandboxDirectory,
    timings: &mut Timings,
) -> Result<NetworkSlot, CreateSandboxError> {
    images::note(directory, &template.manifest.rootfs_sha256)?;
    let (from, to) = (template.rootfs.clone(), directory.file("rootfs.ext4"));
    let disk = async {
        let begun = Instant::now();
        tokio::task::spawn_blocking(move || disk::copy(&from, &to))
            .await
            .map_err(|_| CreateSandboxError::Thread)??;
        Ok::<_, CreateSandboxError>(begun.elapsed())
    };
    let slot = async {
        let begun = Instant::now();
        let slot = host.network.create_slot(directory.id().as_str()).await?;
        Ok::<_, CreateSandboxError>((slot, begun.elapsed()))
    };
    let (disk, slot) = tokio::join!(disk, slot);
    // Both are over by here, so that an error of one never leaves the other at work.
    let (slot, slot_elapsed) = slot?;
    match disk {
        Ok(disk_elapsed) => {
            timings.disk = disk_elapsed;
            timings.slot = slot_elapsed;
            Ok(slot)
        }
        Err(error) => {
            give_back(slot, directory.id()).await;
            Err(error)
        }
    }
}

async fn give_back(slot: NetworkSlot, id: &SandboxId) {
    if let Err(source) = slot.remove().await {
        let error = DestroyError::Slot {
            id: id.clone(),
            source,
        };
        tracing::warn!(%error, "a sandbox that was not created");
    }
}

async fn boot(
    host: &Shared,
    config: &SandboxConfig,
    template: &Template,
    directory: SandboxDirectory,
    slot: NetworkSlot,
    mut timings: Timings,
) -> Result<Sandbox, CreateSandboxError> {
    let begun = Instant::now();
    let vm = match Vm::boot(
        launch_spec(host, &directory, &slot),
        &describe(config, template, &slot),
    )
    .await
    {
        Ok(vm) => vm,
        Err(error) => {
            give_back(slot, directory.id()).await;
            return Err(error.into());
        }
    };
    timings.vmm = begun.elapsed();

    let address = (slot.reachable_address(), ENVD_PORT).into();
    let guest = GuestClient::new(address, None)?;
    let mut sandbox = Sandbox {
        vm,
        slot,
        directory,
        guest,
        timings,
    };
    match greet(host, config, template, &mut sandbox, begun).await {
        Ok(()) => Ok(sandbox),
        Err(error) => {
            if let Err(destroy) = sandbox.destroy().await {
                tracing::warn!(error = %destroy, "a sandbox that did not come up");
            }
            Err(error)
        }
    }
}

/// Waits for the guest's daemon and tells it what it must know.
async fn greet(
    host: &Shared,
    config: &SandboxConfig,
    template: &Template,
    sandbox: &mut Sandbox,
    begun: Instant,
) -> Result<(), CreateSandboxError> {
    let console = |vm: &Vm| vm.console_tail();
    tokio::select! {
        healthy = sandbox.guest.wait_healthy(host.boot_deadline) => {
            healthy.map_err(|source| CreateSandboxError::Unhealthy { console: console(&sandbox.vm), source })?;
        }
        reason = sandbox.vm.exited() => {
            return Err(CreateSandboxError::EndedAtBoot { reason, console: console(&sandbox.vm) });
        }
    }
    sandbox.timings.healthy = begun.elapsed();

    let init = Instant::now();
    let request = first_words(config, template);
    tokio::select! {
        told = sandbox.guest.init(&request) => told?,
        reason = sandbox.vm.exited() => {
            return Err(CreateSandboxError::EndedAtBoot { reason, console: console(&sandbox.vm) });
        }
    }
    sandbox.timings.init = init.elapsed();
    Ok(())
}

fn launch_spec(host: &Shared, directory: &SandboxDirectory, slot: &NetworkSlot) -> LaunchSpec {
    LaunchSpec {
        binary: host.vmm.clone(),
        id: directory.id().clone(),
        api_socket: directory.file("vmm.sock"),
        console: directory.file("console.log"),
        log: directory.file("vmm.log"),
        disk: directory.file("rootfs.ext4"),
        network_namespace: Some(slot.namespace_path()),
    }
}

fn describe(config: &SandboxConfig, template: &Template, slot: &NetworkSlot) -> VmConfig {
    let (address, prefix) = slot.guest_address();
    VmConfig {
        machine: MachineConfig::from(config.resources),
        boot_source: BootSource {
            kernel_image_path: template.kernel.clone(),
            boot_args: format!(
                "{KERNEL_ARGS} wrenn.hostname={} wrenn.ip={address}/{prefix} wrenn.gateway={}",
                config.id,
                slot.gateway(),
            ),
            initrd_path: template.initrd.clone(),
        },
        drives: vec![Drive::root(&LaunchSpec::stable_disk_path())],
        network_interfaces: vec![NetworkInterface {
            iface_id: "eth0".to_owned(),
            guest_mac: slot.guest_mac().to_string(),
            host_dev_name: slot.tap_name().to_owned(),
        }],
        entropy: true,
    }
}

/// What every guest is told before anybody's command runs in it.
fn first_words(config: &SandboxConfig, template: &Template) -> InitRequest {
    let entropy: [u8; 64] = rand::random();
    let mut env = template.manifest.env.clone();
    env.extend(config.env.clone());
    InitRequest {
        timestamp: Some(humantime::format_rfc3339_nanos(SystemTime::now()).to_string()),
        env_vars: Some(env),
        access_token: match config.access {
            GuestAccess::Token => Some(AccessToken::random().reveal().to_owned()),
            GuestAccess::Open => None,
        },
        default_user: Some(template.manifest.default_user.clone()),
        default_workdir: template.manifest.working_directory.clone(),
        hostname: Some(config.id.to_string()),
        entropy: Some(base64::engine::general_purpose::STANDARD.encode(entropy)),
        ..InitRequest::default()
    }
}

/// Refuses what the host's memory cannot hold now. A guest's memory is only taken as it
/// is touched, so without this the host would run out later, at the cost of all.
fn check_memory(resources: Resources) -> Result<(), CreateSandboxError> {
    let Ok(meminfo) = std::fs::read_to_string("/proc/meminfo") else {
        return Ok(());
    };
    let available_mib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib / 1024);
    match available_mib {
        Some(available_mib) if u64::from(resources.memory_mib()) > available_mib => {
            Err(CreateSandboxError::Memory {
                asked_mib: resources.memory_mib(),
                available_mib,
            })
        }
        _ => Ok(()),
    }
}
