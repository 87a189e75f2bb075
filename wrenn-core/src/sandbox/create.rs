//! Creating a sandbox, step by step.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::directory::{DirectoryError, SandboxDirectory};
use super::disk::{MakeDiskError, RootDisk};
use super::frozen::FrozenRecord;
use super::greeting::{GreetError, Greeting};
use super::host::Shared;
use super::named::NamedSnapshot;
use super::prepare::{Prepared, give_back, prepare, vm_user};
use super::record::{GuestSetup, RecordError, SandboxRecord};
use super::restore::{ResumeError, restore};
use super::{GuestAccess, Keep, Sandbox, SandboxConfig, State};
use crate::Chain;
use crate::guest::{
    AccessToken, Command, ENVD_PORT, GuestClient, GuestError, InitRequest, UnhealthyError,
};
use crate::network::{CreateSlotError, GrantTapError, NetworkSlot, SetEgressError};
use crate::template::{OpenTemplateError, Template};
use crate::vm::{
    Balloon, BootSource, CgroupError, Device, Drive, ExitReason, JailFile, JailSpec, LaunchSpec,
    MachineConfig, NetworkInterface, Resources, StartVmError, Vm, VmCgroup, VmConfig,
};

/// The kernel's command line, but for what differs between sandboxes.
///
/// The console is there for a kernel's last words and quiet otherwise, since every
/// character of it is an exit from the guest. Nothing is probed that no VMM here has:
/// keyboard multiplexers, PCI. A panic ends the VM at once rather than leave it hanging.
const KERNEL_ARGS: &str = "console=ttyS0 quiet loglevel=3 8250.nr_uarts=1 reboot=k panic=-1 \
    pci=off i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on cryptomgr.notests \
    audit=0 root=/dev/vda rootfstype=ext4 rw init=/usr/local/bin/wrenn-envd";

/// The tag by which a template's start command is found among a guest's processes.
pub const START_TAG: &str = "start";

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
    /// What it is to be made of cannot be read.
    #[error("what is written of the snapshot cannot be read; delete it and make it again")]
    Snapshot(#[source] RecordError),
    /// It was asked for in another size than the snapshot has.
    #[error(
        "the snapshot has {} vCPUs and {} MiB, which cannot be changed; {} vCPUs and {} MiB were asked for",
        .has.vcpus(), .has.memory_mib(), .asked.vcpus(), .asked.memory_mib()
    )]
    Resources {
        /// What every sandbox of it has.
        has: Resources,
        /// What was asked for.
        asked: Resources,
    },
    /// It could not be brought up as it was frozen.
    #[error("cannot go on from the snapshot")]
    Restore(#[source] Box<ResumeError>),
    /// Its directory could not be made.
    #[error("cannot make the sandbox's directory")]
    Directory(#[from] DirectoryError),
    /// What a later owner must know could not be written down.
    #[error("cannot write down what the sandbox is")]
    Record(#[from] RecordError),
    /// Its disk could not be made.
    #[error("cannot make the sandbox's disk")]
    Disk(#[from] MakeDiskError),
    /// Its network slot could not be made.
    #[error("cannot make the sandbox's network slot")]
    Slot(#[from] CreateSlotError),
    /// Its VMM could not be given the network.
    #[error("cannot give the sandbox's TAP to its VMM")]
    Tap(#[from] GrantTapError),
    /// Its egress policy could not be set.
    #[error("cannot set what the sandbox may connect to")]
    Egress(#[from] SetEgressError),
    /// What it may take of the host could not be limited.
    #[error("cannot limit what the sandbox takes of the host")]
    Cgroup(#[from] CgroupError),
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
    /// Its guest's daemon answered the first call and no other.
    #[error("the guest was not set up within {} s{}", .deadline.as_secs(), quoted(.console))]
    Silent {
        /// How long was waited.
        deadline: Duration,
        /// The end of the guest's console.
        console: String,
    },
    /// Its guest could not be told what it must know.
    #[error("cannot set up the guest")]
    Init(#[from] GuestError),
    /// It was cancelled.
    #[error("the creation was cancelled")]
    Abandoned,
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
    /// There is no host to create it on.
    #[error("this program runs no sandboxes")]
    NoHost,
}

fn quoted(console: &str) -> String {
    if console.is_empty() {
        String::new()
    } else {
        format!("; its console says: {console}")
    }
}

/// How long each step of a creation took. Disk, slot and cgroup are made at the same time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Making the disk.
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
        host: &Arc<Shared>,
        config: SandboxConfig,
        cancelled: &CancellationToken,
    ) -> Result<Self, CreateSandboxError> {
        let span = info_span!("create", sandbox_id = %config.id, template = config.template);
        async {
            let named = NamedSnapshot::find(&host.root, &config.template);
            if let Some(named) = named.map_err(CreateSandboxError::Snapshot)? {
                return Self::restored(host, config, &named.frozen, cancelled).await;
            }
            let begun = Instant::now();
            let mut template = Template::open(&host.root, &config.template)?;
            if let Some(kernel) = &config.kernel {
                template = template.with_kernel(&host.root, kernel)?;
            }
            check_memory(config.resources)?;
            let directory = SandboxDirectory::create(&host.root, config.id.clone())?;
            let created_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            let mut record = SandboxRecord::begin(&config, created_at);
            record.setup = GuestSetup::of(&template.manifest);
            let mut timings = Timings::default();
            directory.refer_to_image(&template.manifest.rootfs_sha256)?;
            let disk = make_disk(host, &template, &directory);
            let prepared = prepare(host, &config, disk, &mut timings).await?;
            let made = Made {
                directory,
                record,
                prepared,
                timings,
            };
            let mut sandbox = boot(host, &template, made, cancelled).await?;
            sandbox.timings.total = begun.elapsed();
            info!(timings = ?sandbox.timings, "the sandbox runs");
            Ok(sandbox)
        }
        .instrument(span)
        .await
    }
}

impl Sandbox {
    /// Creates a sandbox that goes on where another was frozen.
    pub(super) async fn restored(
        host: &Arc<Shared>,
        config: SandboxConfig,
        frozen: &FrozenRecord,
        cancelled: &CancellationToken,
    ) -> Result<Self, CreateSandboxError> {
        if config.resources != frozen.resources {
            return Err(CreateSandboxError::Resources {
                has: frozen.resources,
                asked: config.resources,
            });
        }
        let directory = SandboxDirectory::create(&host.root, config.id.clone())?;
        let created_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut record = SandboxRecord::begin(&config, created_at);
        record.build = Some(frozen.build.clone());
        // From now on it is not collected.
        directory.refer_to_build(&frozen.build)?;
        let restored = restore(host, &directory, &mut record, frozen, cancelled).await;
        let restored = restored.map_err(|error| match error {
            ResumeError::Greet(GreetError::Cancelled) => CreateSandboxError::Abandoned,
            error => CreateSandboxError::Restore(Box::new(error)),
        })?;
        let sandbox = restored.into_sandbox(Arc::clone(host), directory, record);
        info!(timings = ?sandbox.timings, "the sandbox runs");
        Ok(sandbox)
    }
}

async fn make_disk(
    host: &Shared,
    template: &Template,
    directory: &SandboxDirectory,
) -> Result<RootDisk, CreateSandboxError> {
    let bytes = template.manifest.size_mib << 20;
    let mapper = host.mapper.as_ref();
    Ok(RootDisk::make(mapper, directory, &template.rootfs, bytes).await?)
}

/// What a sandbox has before it has a VM.
struct Made {
    directory: SandboxDirectory,
    record: SandboxRecord,
    prepared: Prepared,
    timings: Timings,
}

async fn boot(
    host: &Arc<Shared>,
    template: &Template,
    made: Made,
    cancelled: &CancellationToken,
) -> Result<Sandbox, CreateSandboxError> {
    let Made {
        directory,
        mut record,
        prepared: Prepared { disk, slot, cgroup },
        mut timings,
    } = made;
    let config = record.config();
    let begun = Instant::now();
    let launch = LaunchSpec {
        dies_with_parent: config.keep == Keep::WhileOwned,
        ..launch_spec(host, template, &directory, &disk, &slot, cgroup)
    };
    let vm = match Vm::boot(launch, &describe(host, &config, template, &slot)).await {
        Ok(vm) => vm,
        Err(error) => {
            give_back(Some(disk), Some(slot)).await;
            return Err(error.into());
        }
    };
    timings.vmm = begun.elapsed();
    record.disk = Some(disk.record());
    record.slot = Some(slot.number().get());
    record.vmm = vm.identity().ok();

    let address = (slot.reachable_address(), ENVD_PORT).into();
    let guest = GuestClient::new(address, None)?;
    let mut sandbox = Sandbox {
        vm,
        pager: None,
        lost_pager: AtomicBool::new(false),
        disk,
        slot,
        directory,
        guest,
        record,
        timings,
        host: Arc::clone(host),
        halted: None,
        programs_frozen: AtomicBool::new(false),
    };
    // The steps before are short, and each must end before its resources can be released.
    let greeting = Greeting::begin(host.boot_deadline, cancelled);
    match greet(&greeting, &config, &mut sandbox, template, begun).await {
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
    greeting: &Greeting<'_>,
    config: &SandboxConfig,
    sandbox: &mut Sandbox,
    template: &Template,
    begun: Instant,
) -> Result<(), CreateSandboxError> {
    let Sandbox { vm, guest, .. } = sandbox;
    let not_greeted = |error| not_greeted(error, vm);
    let healthy = greeting.healthy(guest, vm.exited()).await;
    healthy.map_err(not_greeted)?;
    sandbox.timings.healthy = begun.elapsed();

    let init = Instant::now();
    let request = first_words(config, &sandbox.record.setup, None);
    sandbox.record.token.clone_from(&request.access_token);
    let told = greeting.set_up(guest.init(&request), vm.exited()).await;
    told.map_err(not_greeted)?;
    sandbox.timings.init = init.elapsed();
    if let Some(line) = &template.manifest.start_command {
        let started = async {
            start_in_background(guest, line).await;
            Ok(())
        };
        let started = greeting.set_up(started, vm.exited()).await;
        started.map_err(not_greeted)?;
    }
    sandbox.record.state = State::Running;
    sandbox.write_record()?;
    sandbox.set_kept(config.keep == Keep::UntilDestroyed);
    Ok(())
}

fn not_greeted(error: GreetError, vm: &Vm) -> CreateSandboxError {
    let console = vm.console_tail();
    match error {
        GreetError::Unhealthy(source) => CreateSandboxError::Unhealthy { console, source },
        GreetError::Deadline(deadline) => CreateSandboxError::Silent { deadline, console },
        GreetError::Refused(error) => CreateSandboxError::Init(error),
        GreetError::Ended(reason) => CreateSandboxError::EndedAtBoot { reason, console },
        GreetError::Cancelled => CreateSandboxError::Abandoned,
    }
}

/// Starts the template's command as commands are run that name nothing else: its user,
/// environment and directory. What it prints is for whoever connects to it. It runs when
/// the creation ends, and whether it is ready by then is its own business. It is started
/// once: what ends is not started again, and a resume finds it as it was.
async fn start_in_background(guest: &GuestClient, line: &str) {
    let command = Command::shell(line).tag(START_TAG);
    // A guest without it is of use, not least for finding out why.
    match guest.start(&command).await {
        Ok(process) => info!(pid = process.pid(), "the template's command runs"),
        Err(error) => warn!(error = %Chain(&error), "cannot start the template's command"),
    }
}

fn launch_spec(
    host: &Shared,
    template: &Template,
    directory: &SandboxDirectory,
    disk: &RootDisk,
    slot: &NetworkSlot,
    cgroup: Option<VmCgroup>,
) -> LaunchSpec {
    let mut files = vec![
        JailFile::writable(disk.path(), "rootfs.ext4"),
        kernel(template),
    ];
    files.extend(initrd(template));
    LaunchSpec {
        binary: host.vmm.clone(),
        id: directory.id().clone(),
        directory: directory.path().to_owned(),
        network_namespace: Some(slot.namespace_path()),
        jail: JailSpec {
            user: vm_user(host, slot),
            files,
            devices: vec![Device::Kvm, Device::NetTun],
        },
        cgroup,
        dies_with_parent: false,
    }
}

fn kernel(template: &Template) -> JailFile {
    JailFile::read_only(&template.kernel, "vmlinux")
}

fn initrd(template: &Template) -> Option<JailFile> {
    let initrd = template.initrd.as_ref()?;
    Some(JailFile::read_only(initrd, "initrd.img"))
}

fn describe(
    host: &Shared,
    config: &SandboxConfig,
    template: &Template,
    slot: &NetworkSlot,
) -> VmConfig {
    let limits = host.device_limits;
    let (address, prefix) = slot.guest_address();
    VmConfig {
        machine: MachineConfig::from(config.resources),
        boot_source: BootSource {
            kernel_image_path: kernel(template).inside(),
            boot_args: format!(
                "{KERNEL_ARGS} wrenn.hostname={} wrenn.ip={address}/{prefix} wrenn.gateway={}",
                config.id,
                slot.gateway(),
            ),
            initrd_path: initrd(template).map(|file| file.inside()),
        },
        drives: vec![Drive::root(&LaunchSpec::stable_disk_path(), limits)],
        network_interfaces: vec![NetworkInterface {
            iface_id: NetworkInterface::ETH0.to_owned(),
            guest_mac: slot.guest_mac().to_string(),
            host_dev_name: slot.tap_name().to_owned(),
            rx_rate_limiter: limits.network.into(),
            tx_rate_limiter: limits.network.into(),
        }],
        entropy: true,
        balloon: Some(Balloon::REPORTING),
    }
}

/// What every guest is told before anybody's command runs in it, when it has booted and
/// when it has come back. `token` is what the sandbox has already; without, it gets a new one.
pub(super) fn first_words(
    config: &SandboxConfig,
    setup: &GuestSetup,
    token: Option<&str>,
) -> InitRequest {
    let entropy: [u8; 64] = rand::random();
    let mut env = setup.env.clone();
    env.extend(config.env.clone());
    InitRequest {
        env_vars: Some(env),
        access_token: match config.access {
            GuestAccess::Token => Some(match token {
                Some(token) => token.to_owned(),
                None => AccessToken::random().reveal().to_owned(),
            }),
            GuestAccess::Open => None,
        },
        default_user: setup.default_user.clone(),
        default_workdir: setup.working_directory.clone(),
        hostname: Some(config.id.to_string()),
        entropy: Some(base64::engine::general_purpose::STANDARD.encode(entropy)),
        ..the_time()
    }
}

/// What a guest is told of the time, and of nothing else.
pub(super) fn the_time() -> InitRequest {
    InitRequest {
        timestamp: Some(humantime::format_rfc3339_nanos(SystemTime::now()).to_string()),
        ..InitRequest::default()
    }
}

/// Refuses what the host's memory cannot hold now. A guest's memory is only taken as it
/// is touched, so without this the host would run out later, at the cost of all.
pub(super) fn check_memory(resources: Resources) -> Result<(), CreateSandboxError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_kept_or_made_anew() {
        let config = SandboxConfig::from_template("minimal");
        let setup = GuestSetup::default();
        let told = |token| first_words(&config, &setup, token).access_token;
        assert_eq!(told(Some("known")).as_deref(), Some("known"));
        let (first, second) = (told(None).unwrap(), told(None).unwrap());
        assert!(first.len() > 40 && first != second);
        let open = SandboxConfig {
            access: GuestAccess::Open,
            ..config.clone()
        };
        assert_eq!(first_words(&open, &setup, Some("known")).access_token, None);
    }
}
