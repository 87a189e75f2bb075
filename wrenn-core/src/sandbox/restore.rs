//! From a build to a running sandbox: the way back of a paused one, and the beginning of one
//! that is made of a snapshot.
//!
//! ```text
//! build ─┬─ disk      copied out of the build, device made      ┐
//!        ├─ slot      any: the guest sees the same in each      ├ at the same time
//!        └─ cgroup                                              ┘
//!           pager, where the memory has one
//!           VMM loads the snapshot and the guest goes on
//!           guest told the time, fresh entropy, its name and its token ─▶ running
//! ```
//!
//! The build is only read: whatever fails, it is as before.
//!
//! A sandbox that comes back keeps its access token, which stands in its record: callers that
//! hold it go on using it. One that is made of a snapshot gets a token of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::create::{check_memory, first_words, the_time};
use super::directory::{DirectoryError, SandboxDirectory};
use super::disk::{RestoreRootDiskError, RootDisk};
use super::frozen::FrozenRecord;
use super::greeting::{GreetError, Greeting};
use super::host::Shared;
use super::memory::{self, Supply};
use super::prepare::{self, Prepared, prepare, vm_user};
use super::record::{RecordError, SandboxRecord};
use super::{CreateSandboxError, GuestAccess, Keep, Sandbox, SandboxConfig, State, Timings, pause};
use crate::crash;
use crate::guest::{AccessToken, ENVD_PORT, GuestClient, GuestError};
use crate::network::NetworkSlot;
use crate::snapshot::{BuildId, CompactError, OpenSnapshotError, OpenStoreError, Snapshot};
use crate::uffd::process::{LaunchPagerError, PagerProcess};
use crate::vm::{
    Device, JailFile, JailSpec, LaunchSpec, LoadSnapshot, NetworkInterface, NetworkOverride,
    StartVmError, Vm, WrittenBy,
};

/// How far behind a guest's clock may be, and how often it is set until it is not.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(20);
const CLOCK_TRIES: u32 = 3;

/// Why a sandbox was not restored.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// Its snapshot cannot be opened.
    #[error("cannot open its snapshot")]
    Open(#[from] OpenSnapshotError),
    /// There is no disk to resume with.
    #[error("nothing is written down of what its disk is made of")]
    NoDisk,
    /// There is no snapshot to resume.
    #[error("nothing is written down of what it is to be resumed from")]
    NoBuild,
    /// Its memory lies in several files, and could not be brought into one.
    #[error("cannot bring its memory into one file")]
    Compact(#[from] CompactError),
    /// The same.
    #[error("cannot open the store of builds")]
    Store(#[from] OpenStoreError),
    /// Its memory could not be served.
    #[error("cannot serve its memory")]
    Pager(#[from] LaunchPagerError),
    /// No reference to its image could be made.
    #[error("cannot refer to its image")]
    Image(#[from] DirectoryError),
    /// Its disk could not be made again.
    #[error("cannot make its disk again")]
    Disk(#[from] RestoreRootDiskError),
    /// Slot or cgroup could not be made, or there is no memory for it.
    #[error("cannot prepare its VM")]
    Prepare(#[from] CreateSandboxError),
    /// Nothing can be made in its directory.
    #[error("cannot make a directory in {path}")]
    Directory {
        /// The sandbox's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its VM did not load the snapshot.
    #[error("cannot start its VM")]
    Vm(#[from] StartVmError),
    /// Its guest was not set up.
    #[error(transparent)]
    Greet(#[from] GreetError),
    /// It could not be written down what it is.
    #[error("cannot write down that it runs")]
    Record(#[from] RecordError),
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

/// What a restored sandbox has beside its files.
pub(super) struct Restored {
    vm: Vm,
    pager: Option<PagerProcess>,
    disk: RootDisk,
    slot: NetworkSlot,
    guest: GuestClient,
    timings: Timings,
}

impl Restored {
    /// The sandbox, with its files.
    pub(super) fn into_sandbox(
        self,
        host: Arc<Shared>,
        directory: SandboxDirectory,
        record: SandboxRecord,
    ) -> Sandbox {
        let kept = record.keep == Keep::UntilDestroyed;
        let mut sandbox = Sandbox {
            vm: self.vm,
            pager: self.pager,
            lost_pager: AtomicBool::new(false),
            disk: self.disk,
            slot: self.slot,
            directory,
            guest: self.guest,
            record,
            timings: self.timings,
            host,
            halted: None,
            programs_frozen: AtomicBool::new(false),
        };
        sandbox.set_kept(kept);
        sandbox
    }
}

/// Brings a sandbox up as it is in `frozen`, and writes down that it runs.
pub(super) async fn restore(
    host: &Arc<Shared>,
    directory: &SandboxDirectory,
    record: &mut SandboxRecord,
    frozen: &FrozenRecord,
    cancelled: &CancellationToken,
) -> Result<Restored, ResumeError> {
    let begun = Instant::now();
    let mut timings = Timings::default();
    check_memory(record.resources)?;
    let config = record.config();
    pause::begin_to_have(directory).map_err(|source| ResumeError::Directory {
        path: directory.path().to_owned(),
        source,
    })?;
    if let Some(image) = &frozen.image {
        directory.refer_to_image(image)?;
    }
    // Which builds exist is known before anything is made, and it stays until the VM has it.
    let snapshot = open(host, &frozen.build).await?;
    let disk = restore_disk(host, directory, frozen, &snapshot);
    let Prepared { disk, slot, cgroup } = prepare(host, &config, disk, &mut timings).await?;
    crash::point("resume.prepared");
    if cancelled.is_cancelled() {
        prepare::give_back(Some(disk), Some(slot)).await;
        return Err(GreetError::Cancelled.into());
    }
    let launched = Instant::now();
    let user = vm_user(host, &slot);
    let supply = match memory::supply(host, directory, snapshot, user).await {
        Ok(supply) => supply,
        Err(error) => {
            prepare::give_back(Some(disk), Some(slot)).await;
            return Err(error);
        }
    };
    crash::point("resume.served");
    let Supply {
        snapshot,
        backend,
        file,
        device,
        pager,
    } = supply;
    let state = JailFile::read_only(snapshot.vmstate(), "vmstate.bin");
    let load = LoadSnapshot {
        snapshot_path: state.inside(),
        mem_backend: backend,
        track_dirty_pages: true,
        // By Vm::restore, once the limits are set.
        resume_vm: false,
        network_overrides: vec![NetworkOverride {
            iface_id: NetworkInterface::ETH0.to_owned(),
            host_dev_name: slot.tap_name().to_owned(),
        }],
    };
    let spec = LaunchSpec {
        binary: host.vmm.clone(),
        id: record.id.clone(),
        directory: directory.path().to_owned(),
        network_namespace: Some(slot.namespace_path()),
        jail: JailSpec {
            user,
            files: vec![JailFile::writable(disk.path(), "rootfs.ext4"), state, file],
            devices: [Device::Kvm, Device::NetTun]
                .into_iter()
                .chain(device)
                .collect(),
        },
        cgroup,
        dies_with_parent: record.keep == Keep::WhileOwned,
    };
    let details = &snapshot.manifest().details;
    let wrote = WrittenBy {
        vmm: details.vmm.clone(),
        version: details.vmm_version.clone(),
    };
    let vm = match Vm::restore(spec, &load, host.device_limits, &wrote).await {
        Ok(vm) => vm,
        Err(error) => {
            memory::end(pager).await;
            prepare::give_back(Some(disk), Some(slot)).await;
            return Err(error.into());
        }
    };
    timings.vmm = launched.elapsed();
    crash::point("resume.loaded");
    record.resources = frozen.resources;
    record.setup = frozen.setup.clone();
    record.vmm = vm.identity().ok();
    record.pager = pager.as_ref().and_then(|pager| pager.identity().ok());
    record.slot = Some(slot.number().get());
    record.disk = Some(disk.record());
    let address = (slot.reachable_address(), ENVD_PORT).into();
    let token = frozen.token.clone().map(AccessToken::new);
    let come_back = async {
        let greeting = Greeting::begin(host.boot_deadline, cancelled);
        let greeted = greet(
            &greeting,
            record,
            &config,
            &vm,
            (address, token),
            &mut timings,
            launched,
        );
        let guest = greeted.await?;
        crash::point("resume.greeted");
        record.state = State::Running;
        record.reason = None;
        record.auto_paused = false;
        record.build = Some(snapshot.id().clone());
        record.dirty_since = Some(snapshot.id().clone());
        // The build of before may be collected from now on.
        if record.keep == Keep::UntilDestroyed {
            record.write(directory.path())?;
        }
        crash::point("resume.recorded");
        Ok::<_, ResumeError>(guest)
    };
    match come_back.await {
        Ok(guest) => {
            timings.total = begun.elapsed();
            Ok(Restored {
                vm,
                pager,
                disk,
                slot,
                guest,
                timings,
            })
        }
        Err(error) => {
            vm.kill().await;
            memory::end(pager).await;
            prepare::give_back(Some(disk), Some(slot)).await;
            Err(error)
        }
    }
}

async fn open(host: &Shared, build: &BuildId) -> Result<Snapshot, ResumeError> {
    let (root, id) = (host.root.clone(), build.clone());
    let opened = tokio::task::spawn_blocking(move || Snapshot::open(&root, &id)).await;
    Ok(opened.map_err(|_| ResumeError::Thread)??)
}

async fn restore_disk(
    host: &Shared,
    directory: &SandboxDirectory,
    frozen: &FrozenRecord,
    snapshot: &Snapshot,
) -> Result<RootDisk, ResumeError> {
    let disk = frozen.disk.as_ref().ok_or(ResumeError::NoDisk)?;
    let saved = snapshot.directory().join(disk.file_name());
    Ok(RootDisk::restore(host.mapper.as_ref(), directory, disk, &saved).await?)
}

/// Waits for the guest's daemon, which knows the token from before, and tells it what has
/// changed meanwhile.
async fn greet(
    greeting: &Greeting<'_>,
    record: &mut SandboxRecord,
    config: &SandboxConfig,
    vm: &Vm,
    (address, token): (SocketAddr, Option<AccessToken>),
    timings: &mut Timings,
    launched: Instant,
) -> Result<GuestClient, GreetError> {
    let mut guest = GuestClient::new(address, token)?;
    greeting.healthy(&guest, vm.exited()).await?;
    timings.healthy = launched.elapsed();
    let begun = Instant::now();
    let mut request = first_words(config, &record.setup, record.token.as_deref());
    if config.access == GuestAccess::Open {
        // One that is open may come from one that was not.
        request.access_token = Some(String::new());
    }
    let told = async {
        guest.init(&request).await?;
        set_clock(&mut guest, begun.elapsed()).await?;
        guest.thaw().await
    };
    greeting.set_up(told, vm.exited()).await?;
    timings.init = begun.elapsed();
    record.token = request.access_token.filter(|token| !token.is_empty());
    Ok(guest)
}

/// The guest's clock is behind by what its last request took. One that took long, as the first
/// of a guest may whose memory has to be brought, is made again.
async fn set_clock(guest: &mut GuestClient, mut took: Duration) -> Result<(), GuestError> {
    for _ in 0..CLOCK_TRIES {
        if took <= CLOCK_TOLERANCE {
            break;
        }
        let since = Instant::now();
        guest.init(&the_time()).await?;
        took = since.elapsed();
    }
    Ok(())
}
