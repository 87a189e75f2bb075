//! What a sandbox needs before it can have a VM: disk, slot and cgroup, made at the same time.

use std::time::{Duration, Instant};

use tracing::warn;

use super::SandboxConfig;
use super::create::{CreateSandboxError, Timings};
use super::disk::RootDisk;
use super::host::Shared;
use crate::Chain;
use crate::network::{EgressPolicy, NetworkSlot};
use crate::vm::{Limits, VmCgroup, VmUser};

/// Everything but the VM.
pub(super) struct Prepared {
    pub(super) disk: RootDisk,
    pub(super) slot: NetworkSlot,
    pub(super) cgroup: Option<VmCgroup>,
}

/// Makes slot and cgroup, while `disk` makes the disk. Whatever one of them fails on, the
/// others are given back.
pub(super) async fn prepare<E: From<CreateSandboxError>>(
    host: &Shared,
    config: &SandboxConfig,
    disk: impl Future<Output = Result<RootDisk, E>>,
    timings: &mut Timings,
) -> Result<Prepared, E> {
    let disk = timed(disk);
    let slot = timed(take_slot(host, config));
    let limits = Limits {
        disk: host.disk_limits,
        ..Limits::of(config.resources)
    };
    let cgroups = host.cgroups.clone();
    let id = config.id.clone();
    let cgroup = async {
        tokio::task::spawn_blocking(move || cgroups.create(&id, limits))
            .await
            .map_err(|_| CreateSandboxError::Thread)?
            .map_err(CreateSandboxError::from)
    };
    // All are over afterwards, so that an error of one never leaves another at work.
    match tokio::join!(disk, slot, cgroup) {
        (Ok((disk, disk_took)), Ok((slot, slot_took)), Ok(cgroup)) => {
            timings.disk = disk_took;
            timings.slot = slot_took;
            Ok(Prepared { disk, slot, cgroup })
        }
        (disk, slot, cgroup) => {
            let (disk, disk_error) = apart(disk);
            let (slot, slot_error) = apart(slot);
            give_back(disk.map(|(disk, _)| disk), slot.map(|(slot, _)| slot)).await;
            Err(disk_error.unwrap_or_else(|| {
                let error = slot_error.or(cgroup.err());
                error.unwrap_or(CreateSandboxError::Thread).into()
            }))
        }
    }
}

/// Gives back what a sandbox had that has no VM any more, the disk first.
pub(super) async fn give_back(disk: Option<RootDisk>, slot: Option<NetworkSlot>) {
    if let Some(disk) = disk
        && let Err(error) = disk.remove().await
    {
        warn!(error = %Chain(&error), "a disk that is given back");
    }
    if let Some(slot) = slot
        && let Err(error) = slot.remove().await
    {
        warn!(error = %Chain(&error), "a slot that is given back");
    }
}

/// The user that a sandbox's VMM runs as: the slot's, since no two sandboxes have one slot
/// at the same time.
pub(super) fn vm_user(host: &Shared, slot: &NetworkSlot) -> VmUser {
    host.vm_users.of_slot(slot.number().get())
}

/// Takes a slot and makes it that of this sandbox.
async fn take_slot(
    host: &Shared,
    config: &SandboxConfig,
) -> Result<NetworkSlot, CreateSandboxError> {
    let slot = host.slots.take(config.id.as_str()).await?;
    let fitted = async {
        let user = vm_user(host, &slot).get();
        slot.grant_tap(user, user).await?;
        if config.egress != EgressPolicy::default() {
            slot.set_egress(&config.egress).await?;
        }
        Ok(())
    };
    match fitted.await {
        Ok(()) => Ok(slot),
        Err(error) => {
            give_back(None, Some(slot)).await;
            Err(error)
        }
    }
}

async fn timed<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<(T, Duration), E> {
    let begun = Instant::now();
    let made = work.await?;
    Ok((made, begun.elapsed()))
}

fn apart<T, E>(result: Result<T, E>) -> (Option<T>, Option<E>) {
    match result {
        Ok(made) => (Some(made), None),
        Err(error) => (None, Some(error)),
    }
}
