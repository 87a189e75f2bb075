//! Taking over a sandbox whose owner died or went away.
//!
//! ```text
//! sandbox.json says      its VMM         then
//! ───────────────────    ─────────────   ─────────────────────────────────────────
//! pending, stopped       any             swept: promised to nobody, or to be gone
//! running                alive           taken over, slot and disk with it
//! running                gone            error, its data kept
//! paused                 any             paused; what a pause or a resume that was cut
//!                                        short left of VM, disk and slot is removed
//! error                  -               error, as before
//! (unreadable)           any             error, all that is there left as it is
//! ```
//!
//! The owner may have died amid a pause, with the VM stopped or the guest's programs frozen.
//! Both are undone by the new owner, [at once](Sandbox::continue_vm) and
//! [when the guest answers](Sandbox::thaw): no guest delays the adoption of another.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tracing::{error, info, warn};

use super::directory::{DirectoryError, SandboxDirectory};
use super::disk::{RootDisk, TakeOverDiskError};
use super::host::Shared;
use super::pause::{self, PauseTimings};
use super::record::{RecordError, SandboxRecord};
use super::{Paused, Remains, Sandbox, State, Timings, memory, prepare, sweep};
use crate::guest::{AccessToken, ENVD_PORT, GuestClient};
use crate::network::{AdoptSlotError, NetworkSlot, SlotNumber};
use crate::uffd::process::PagerProcess;
use crate::vm::{ApiError, Vm};
use crate::{Chain, SandboxId};

/// How long to wait before a sandbox is looked at again.
const LOOK_DELAYS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// A sandbox that was taken over.
#[derive(Debug)]
pub enum Adopted<S = Sandbox, P = Paused> {
    /// It runs as if nothing had happened, once its VM is
    /// [continued](Sandbox::continue_vm) and its guest's programs are
    /// [thawed](Sandbox::thaw): its owner may have died amid a pause.
    Running(Box<S>),
    /// It lies on disk.
    Paused(Box<P>),
    /// It broke, now or earlier.
    Broken(Box<Remains>),
}

/// Why a sandbox was not taken over. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Its owner is alive.
    #[error("sandbox {0} belongs to a running process")]
    Owned(SandboxId),
    /// There is none, or it was not to outlive its owner.
    #[error("there is no sandbox {0} to take over")]
    Unknown(SandboxId),
    /// This process lacks what reading its record takes.
    #[error("cannot read the record of sandbox {id} for now; it is left as it is")]
    Record {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// Its directory cannot be locked.
    #[error("cannot take over the directory of a sandbox")]
    Directory(#[from] DirectoryError),
}

/// Adopts a sandbox. Where something of it cannot be looked at, that is tried again for a few
/// seconds; then the sandbox goes on as it is, and is shown as broken for now.
pub(super) async fn adopt(host: &Arc<Shared>, id: SandboxId) -> Result<Adopted, AdoptError> {
    let mut delays = LOOK_DELAYS.into_iter();
    loop {
        let (error, directory, record) = match adopt_once(host, &id).await? {
            Ok(adopted) => return Ok(adopted),
            Err(unknown) => unknown,
        };
        let error = Chain(&error).to_string();
        let Some(delay) = delays.next() else {
            error!(sandbox_id = %id, error, "failed to adopt a sandbox");
            let reason = format!("{error}; it goes on as it is, and a restart adopts it");
            let remains = Remains::unadopted(Arc::clone(host), directory, Some(record), reason);
            return Ok(Adopted::Broken(Box::new(remains)));
        };
        warn!(sandbox_id = %id, error, "failed to adopt a sandbox for now");
        directory.leave();
        tokio::time::sleep(delay).await;
    }
}

type Unknown = (LookError, SandboxDirectory, SandboxRecord);

async fn adopt_once(
    host: &Arc<Shared>,
    id: &SandboxId,
) -> Result<Result<Adopted, Unknown>, AdoptError> {
    let id = id.clone();
    let path = host.root.sandbox(&id);
    // A look before the lock, whose taking makes a file.
    if !path.is_dir() {
        return Err(AdoptError::Unknown(id));
    }
    let Some(directory) = SandboxDirectory::take_over(&host.root, id.clone())? else {
        return Err(AdoptError::Owned(id));
    };
    let record = match SandboxRecord::read(&path) {
        Ok(Some(record)) if record.outlives_its_owner() => record,
        Ok(_) => {
            directory.leave();
            return Err(AdoptError::Unknown(id));
        }
        Err(source) if source.is_passing() => {
            directory.leave();
            return Err(AdoptError::Record { id, source });
        }
        Err(source) => {
            error!(sandbox_id = %id, error = %Chain(&source), "failed to read a record");
            let reason = Chain(&source).to_string();
            let remains = Remains::unadopted(Arc::clone(host), directory, None, reason);
            return Ok(Ok(Adopted::Broken(Box::new(remains))));
        }
    };
    Ok(match record.state {
        State::Running => take_over(host, directory, record).await,
        State::Paused => Ok(Adopted::Paused(Box::new(
            lie_down(host, directory, record).await,
        ))),
        State::Error => {
            let reason = record.reason.clone().unwrap_or_default();
            let remains = Remains::write(directory, record, reason);
            Ok(Adopted::Broken(Box::new(remains)))
        }
        other => {
            let reason = format!("its owner died while it was {other}");
            let remains = Remains::write(directory, record, reason);
            Ok(Adopted::Broken(Box::new(remains)))
        }
    })
}

/// Whether something of a running sandbox is there cannot be found out.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("cannot look at its VM")]
    Vm(#[source] io::Error),
    #[error("cannot look at its pager")]
    Pager(#[source] io::Error),
    #[error("cannot look at its disk")]
    Disk(#[source] TakeOverDiskError),
    #[error("cannot look at its network slot")]
    Slot(#[source] AdoptSlotError),
}

/// Adopts a running sandbox, or fails where it is unknown whether all of it is there: then it
/// goes on as it is.
async fn take_over(
    host: &Arc<Shared>,
    directory: SandboxDirectory,
    record: SandboxRecord,
) -> Result<Adopted, Unknown> {
    let id = directory.id().clone();
    let adopted = record.vmm.as_ref().map(|vmm| {
        let cgroup = host.cgroups.adopt(&id);
        Vm::adopt(vmm, cgroup, directory.path())
    });
    let mut vm = match adopted.transpose() {
        Ok(vm) => vm.flatten(),
        Err(error) => return Err((LookError::Vm(error), directory, record)),
    };
    if let Some(vm) = &mut vm {
        vm.set_kept(true);
    }
    let adopted = record.pager.as_ref().map(PagerProcess::adopt);
    let (pager, no_pager) = match adopted.transpose() {
        Ok(pager) => (pager.flatten(), record.pager.is_some()),
        Err(error) => {
            return Err((LookError::Pager(error), directory, record));
        }
    };
    let no_pager = no_pager && pager.is_none();
    // Without it the VM waits for ever for pages.
    let vm = match vm {
        Some(vm) if no_pager => {
            vm.kill().await;
            None
        }
        vm => vm,
    };
    let (disk, unknown_disk) = take_over_disk(host, &directory, &record).await;
    let (slot, unknown_slot) = take_over_slot(host, &record).await;
    // Without its VM it is broken, whatever else there is.
    if vm.is_some()
        && let Some(error) = unknown_disk.or(unknown_slot)
    {
        return Err((error, directory, record));
    }
    let guest = slot.as_ref().and_then(|slot| {
        let address = (slot.reachable_address(), ENVD_PORT).into();
        let token = record.token.clone().map(AccessToken::new);
        GuestClient::new(address, token).ok()
    });
    match (vm, disk, slot, guest) {
        (Some(vm), Some(disk), Some(slot), Some(guest)) => {
            info!(sandbox_id = %id, "adopted");
            Ok(Adopted::Running(Box::new(Sandbox {
                vm,
                pager,
                lost_pager: AtomicBool::new(false),
                disk,
                slot,
                directory,
                guest,
                record,
                timings: Timings::default(),
                host: Arc::clone(host),
                halted: None,
                programs_frozen: AtomicBool::new(true),
            })))
        }
        (vm, disk, slot, _) => {
            let lost = [
                (no_pager, "pager ended"),
                (vm.is_none(), "VM ended"),
                (disk.is_none(), "disk was removed"),
                (slot.is_none(), "network was removed"),
            ];
            let lost = lost.iter().find(|(is_lost, _)| *is_lost);
            let lost = lost.map_or("record was damaged", |(_, what)| what);
            if let Some(vm) = vm {
                vm.kill().await;
            }
            memory::end(pager).await;
            prepare::give_back(disk, slot).await;
            // What could not be taken over is not ours to give back, and nobody's to keep: a
            // host that starts anew has the files of a slot, and nothing else of it.
            sweep_strays(host, &id).await;
            let reason = format!("its {lost} while nobody owned it");
            warn!(sandbox_id = %id, reason, "cannot be taken over");
            let remains = Remains::write(directory, record, reason);
            Ok(Adopted::Broken(Box::new(remains)))
        }
    }
}

/// A paused sandbox has nothing but files. An owner that died while it paused or resumed it
/// may have left the rest; whoever has the lock may remove that.
async fn lie_down(
    host: &Arc<Shared>,
    mut directory: SandboxDirectory,
    mut record: SandboxRecord,
) -> Paused {
    directory.keep();
    let id = directory.id().clone();
    if pause::may_have_more(&directory) {
        sweep_strays(host, &id).await;
    }
    pause::clear(&directory);
    (record.vmm, record.pager, record.slot) = (None, None, None);
    Paused::new(Arc::clone(host), directory, record, PauseTimings::default())
}

async fn sweep_strays(host: &Shared, id: &SandboxId) {
    if let Err(error) = sweep::strays(host, id).await {
        warn!(sandbox_id = %id, error = %Chain(&error), "what a dead owner left stays for now");
    }
}

impl Sandbox {
    /// Continues the VM of an adopted sandbox whose owner died while it paused it.
    pub async fn continue_vm(&self) {
        let resumed = async {
            if self.vm.api().info().await?.state == "Paused" {
                info!(sandbox_id = %self.id(), "continued: its owner died while it paused it");
                self.vm.api().resume().await?;
            }
            Ok::<_, ApiError>(())
        };
        if let Err(error) = resumed.await {
            warn!(sandbox_id = %self.id(), error = %Chain(&error), "failed to continue an adopted VM");
        }
    }
}

/// The disk, or why it is unknown whether there is one.
async fn take_over_disk(
    host: &Shared,
    directory: &SandboxDirectory,
    record: &SandboxRecord,
) -> (Option<RootDisk>, Option<LookError>) {
    let Some(disk) = record.disk.as_ref() else {
        return (None, None);
    };
    match RootDisk::take_over(host.mapper.as_ref(), directory, disk).await {
        Ok(mut disk) => {
            disk.set_kept(true);
            (Some(disk), None)
        }
        Err(error) if error.is_gone() => {
            warn!(sandbox_id = %record.id, error = %Chain(&error), "cannot adopt its disk");
            (None, None)
        }
        Err(error) => (None, Some(LookError::Disk(error))),
    }
}

/// The slot, or why it is unknown whether there is one.
async fn take_over_slot(
    host: &Shared,
    record: &SandboxRecord,
) -> (Option<NetworkSlot>, Option<LookError>) {
    let Some(number) = record.slot.and_then(SlotNumber::new) else {
        return (None, None);
    };
    match host.network.adopt(number, record.id.as_str()).await {
        Ok(mut slot) => {
            slot.set_kept(true);
            (Some(slot), None)
        }
        Err(error) if error.is_gone() => {
            warn!(sandbox_id = %record.id, error = %Chain(&error), "cannot adopt its slot");
            (None, None)
        }
        Err(error) => (None, Some(LookError::Slot(error))),
    }
}
