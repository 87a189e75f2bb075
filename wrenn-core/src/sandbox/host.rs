//! The host: what all its sandboxes share.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::adopt::{self, AdoptError, Adopted};
use super::builds::{self, CollectBuildsError};
use super::sweep::{self, Leftovers, SweepError};
use super::{CreateSandboxError, Frozen, MemorySupply, Sandbox, SandboxConfig};
use crate::devicemapper::{self, DeviceMapper};
use crate::network::{Network, NetworkConfig, OpenNetworkError, PoolConfig, SlotPool};
use crate::snapshot::BuildId;
use crate::vm::{
    Cgroups, DeviceLimits, DiskLimits, Enforced, FindVmmError, VmUsers, VmmBinary, find_program,
    is_program,
};
use crate::{Chain, RootDirectory, SandboxId};

const KVM: &str = "/dev/kvm";
const USERFAULTFD: &str = "/dev/userfaultfd";

/// How a host is set up.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Where everything lies.
    pub root: RootDirectory,
    /// The program that runs VMs; looked for where it is not set.
    pub vmm: Option<PathBuf>,
    /// Directories to look for it in, as in `PATH`.
    pub search_path: Option<OsString>,
    /// Addresses that slots are made of.
    pub network: NetworkConfig,
    /// Slots that are made before somebody needs them; none unless set.
    pub pool: PoolConfig,
    /// Whom the VMMs run as.
    pub vm_users: VmUsers,
    /// Where the hierarchy of cgroups is mounted, or the part of it that was given to us.
    pub cgroup_root: PathBuf,
    /// What each sandbox may read from the disk and write to it; all that it can unless set.
    pub disk_limits: Option<DiskLimits>,
    /// How fast the devices of each sandbox are.
    pub device_limits: DeviceLimits,
    /// How long a guest may take, from its first instruction after a boot or a resume, until
    /// its daemon has answered all calls that set it up.
    pub boot_deadline: Duration,
    /// The program that feeds restored guests their memory; looked for where it is not set.
    pub pager: Option<PathBuf>,
    /// Where restored guests get their memory from.
    pub memory: MemorySupply,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            root: RootDirectory::default(),
            vmm: None,
            search_path: std::env::var_os("PATH"),
            network: NetworkConfig::default(),
            // Worth it only for who makes many sandboxes.
            pool: PoolConfig {
                size: 0,
                ..PoolConfig::default()
            },
            vm_users: VmUsers::default(),
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            disk_limits: Some(DiskLimits::default()),
            device_limits: DeviceLimits::default(),
            // Ten times what a boot takes where one VM emulates another, the slowest case.
            boot_deadline: Duration::from_secs(60),
            pager: None,
            memory: MemorySupply::default(),
        }
    }
}

/// Why a host cannot run sandboxes.
#[derive(Debug, thiserror::Error)]
pub enum OpenHostError {
    /// Namespaces, TAP devices and rules need root.
    #[error("sandboxes are run as root; try again with sudo")]
    NotRoot,
    /// There is no KVM.
    #[error(
        "cannot open {KVM}; load kvm_intel or kvm_amd, or run in the machine (see `wrenn doctor`)"
    )]
    Kvm(#[source] io::Error),
    /// There is no VMM.
    #[error("there is no VMM to run")]
    Vmm(#[from] FindVmmError),
    /// What is to feed restored guests is no program.
    #[error("{} is no program; give the path of wrenn-pager", .0.display())]
    Pager(PathBuf),
    /// The network could not be set up.
    #[error("cannot set up the host's network")]
    Network(#[from] OpenNetworkError),
    /// The disks of sandboxes could not be searched.
    #[error("cannot sweep the disks that dead processes left")]
    Disks(#[from] devicemapper::SweepError),
    /// What dead processes left could not be removed.
    #[error("cannot sweep what dead processes left")]
    Sweep(#[from] SweepError),
}

/// A host that runs sandboxes. Cheap to clone. Many processes may open the same one.
#[derive(Clone, Debug)]
pub struct Host(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) root: RootDirectory,
    pub(super) vmm: VmmBinary,
    pub(super) network: Network,
    pub(super) slots: SlotPool,
    /// Creations that are under way, whether anybody still waits for them or not.
    pub(super) creations: TaskTracker,
    pub(super) vm_users: VmUsers,
    pub(super) cgroups: Cgroups,
    pub(super) disk_limits: Option<DiskLimits>,
    pub(super) device_limits: DeviceLimits,
    /// Where the kernel has one; disks are copies otherwise.
    pub(super) mapper: Option<DeviceMapper>,
    pub(super) boot_deadline: Duration,
    /// Where there is one that can work here.
    pub(super) pager: Option<PathBuf>,
    pub(super) memory: MemorySupply,
}

impl Host {
    /// Prepares this host, and sweeps what processes left that died.
    ///
    /// # Errors
    /// When something is missing; the message says what, and how to get it.
    pub async fn open(config: HostConfig) -> Result<Self, OpenHostError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(OpenHostError::NotRoot);
        }
        let kvm = std::fs::File::options().read(true).write(true).open(KVM);
        drop(kvm.map_err(OpenHostError::Kvm)?);
        let vmm = VmmBinary::find(config.vmm.as_deref(), config.search_path.as_deref())?;
        let pager = find_pager(config.pager.as_deref(), config.search_path.as_deref())?;
        let cgroups = Cgroups::open(&config.cgroup_root, config.root.path());
        sweep::sweep(&config.root, &cgroups).await?;
        let kept = sweep::orphans(&config.root).await?;
        let network = Network::open(config.network, config.root.path(), move |owner| {
            kept.iter().any(|id| id.as_str() == owner)
        })
        .await?;
        let mapper = open_mapper(&config.root).await?;
        let slots = SlotPool::start(network.clone(), config.pool);
        Ok(Self(Arc::new(Shared {
            root: config.root,
            vmm,
            network,
            slots,
            creations: TaskTracker::new(),
            vm_users: config.vm_users,
            cgroups,
            disk_limits: config.disk_limits,
            device_limits: config.device_limits,
            mapper,
            boot_deadline: config.boot_deadline,
            pager,
            memory: config.memory,
        })))
    }

    /// Creates a sandbox and waits until commands can run in it.
    ///
    /// # Errors
    /// When a step fails; nothing is left behind.
    ///
    /// # Cancel safety
    /// The creation runs on a task of its own. Dropping the future ends it at its next
    /// step, which gives back what was made so far, in order.
    pub async fn create(&self, config: SandboxConfig) -> Result<Sandbox, CreateSandboxError> {
        let host = self.clone();
        let create = |cancelled| async move { host.create_unless(config, &cancelled).await };
        self.creation(create).await
    }

    /// The same on the caller's task, unless it is cancelled, which waits until all resources
    /// are released.
    pub(crate) async fn create_unless(
        &self,
        config: SandboxConfig,
        cancelled: &CancellationToken,
    ) -> Result<Sandbox, CreateSandboxError> {
        Sandbox::create(&self.0, config, cancelled).await
    }

    /// Creates a sandbox that goes on where another was frozen, under its own id, with
    /// randomness, a token and a host name of its own. The size is that of the other.
    ///
    /// # Errors
    /// When a step fails; nothing is left behind.
    ///
    /// # Cancel safety
    /// As for [`Host::create`].
    pub async fn create_from(
        &self,
        frozen: &Frozen,
        config: SandboxConfig,
    ) -> Result<Sandbox, CreateSandboxError> {
        let (host, frozen) = (self.clone(), frozen.clone());
        let create =
            |cancelled| async move { host.create_from_unless(&frozen, config, &cancelled).await };
        self.creation(create).await
    }

    /// The same on the caller's task, unless it is cancelled, which waits until all resources
    /// are released.
    pub(crate) async fn create_from_unless(
        &self,
        frozen: &Frozen,
        config: SandboxConfig,
        cancelled: &CancellationToken,
    ) -> Result<Sandbox, CreateSandboxError> {
        Sandbox::restored(&self.0, config, &frozen.record, cancelled).await
    }

    /// Runs a creation to its end, whoever goes away. It is told when nobody waits any more.
    async fn creation<F>(
        &self,
        create: impl FnOnce(CancellationToken) -> F,
    ) -> Result<Sandbox, CreateSandboxError>
    where
        F: Future<Output = Result<Sandbox, CreateSandboxError>> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let given_up = CancellationToken::new();
        let created = create(given_up.clone());
        let _waits = given_up.drop_guard();
        let creation = async move {
            let outcome = created.await;
            // Whoever went away in the last moment has a sandbox that nobody knows of.
            if let Err(Ok(sandbox)) = sender.send(outcome)
                && let Err(error) = sandbox.destroy().await
            {
                tracing::warn!(error = %Chain(&error), "a sandbox that nobody waited for");
            }
        };
        drop(self.0.creations.spawn(creation.in_current_span()));
        receiver.await.unwrap_or(Err(CreateSandboxError::Thread))
    }

    /// Ids of the sandboxes that outlived their owner and can be [adopted](Self::adopt).
    ///
    /// # Errors
    /// When the sandboxes' directory cannot be listed.
    pub async fn orphans(&self) -> Result<Vec<SandboxId>, SweepError> {
        sweep::orphans(&self.0.root).await
    }

    /// Takes over a sandbox that outlived its owner.
    ///
    /// # Errors
    /// When there is none of this id, or its owner lives.
    pub async fn adopt(&self, id: SandboxId) -> Result<Adopted, AdoptError> {
        adopt::adopt(&self.0, id).await
    }

    /// Removes every build that no sandbox needs, and what dead processes left half
    /// written. Returns the builds' ids.
    ///
    /// # Errors
    /// When it cannot be found out what is needed, then nothing more is removed.
    pub async fn collect_builds(&self) -> Result<Vec<BuildId>, CollectBuildsError> {
        builds::collect(&self.0.root).await
    }

    /// Where everything lies.
    #[must_use]
    pub fn root(&self) -> &RootDirectory {
        &self.0.root
    }

    /// The program that runs VMs.
    #[must_use]
    pub fn vmm(&self) -> &Path {
        self.0.vmm.path()
    }

    /// Which limits hold for what a sandbox takes of this host.
    #[must_use]
    pub fn enforced(&self) -> Enforced {
        self.0.cgroups.enforced()
    }

    /// Gives back what was made ahead, and waits until what was dropped is given back. To
    /// be called before the process ends; a host does its work afterwards too.
    pub async fn settled(&self) {
        self.0.creations.close();
        self.0.creations.wait().await;
        self.0.creations.reopen();
        if let Err(error) = self.0.slots.drain().await {
            tracing::warn!(error = %Chain(&error), "a slot that was made ahead");
        }
        self.0.cgroups.settled().await;
        self.0.network.settled().await;
        if let Some(mapper) = &self.0.mapper {
            mapper.settled().await;
        }
    }

    /// Everything on this host that belongs to sandboxes, of whichever process.
    ///
    /// # Errors
    /// When the host cannot be searched.
    pub async fn leftovers(&self) -> Result<Leftovers, SweepError> {
        sweep::leftovers(&self.0).await
    }
}

/// Finds the pager, and whether its guests could use it.
fn find_pager(
    configured: Option<&Path>,
    search_path: Option<&OsStr>,
) -> Result<Option<PathBuf>, OpenHostError> {
    let found = match configured {
        Some(path) if is_program(path) => Some(path.to_owned()),
        Some(path) => return Err(OpenHostError::Pager(path.to_owned())),
        None => find_program("wrenn-pager", search_path),
    };
    if found.is_none() || !Path::new(USERFAULTFD).exists() {
        tracing::info!(
            "no wrenn-pager or no {USERFAULTFD}: memory in several files is brought into one before a resume"
        );
        return Ok(None);
    }
    Ok(found)
}

/// Opens the device mapper where the kernel has one, and sweeps the disks of sandboxes
/// that are no more.
async fn open_mapper(root: &RootDirectory) -> Result<Option<DeviceMapper>, OpenHostError> {
    let mapper = match DeviceMapper::open(root).await {
        Ok(mapper) => mapper,
        Err(error) => {
            tracing::info!(error = %Chain(&error), "disks are copies of their templates'");
            return Ok(None);
        }
    };
    // A sandbox has a directory before it has a disk, and as long as it has one.
    let sandboxes = root.clone();
    mapper
        .sweep(move |id| sandboxes.sandbox(id).exists())
        .await?;
    Ok(Some(mapper))
}
