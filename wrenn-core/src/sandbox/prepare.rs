//! What a sandbox needs before it can have a VM: disk, slot and cgroup, made at the same time.

use std::time::{Duration, Instant};

use tracing::warn;

use super::create::{CreateSandboxError, Timings};
use super::directory::SandboxDirectory;
use super::disk::RootDisk;
use super::host::Shared;
use super::{SandboxConfig, images};
use crate::Chain;
use crate::network::{EgressPolicy, NetworkSlot};
use crate::template::Template;
use crate::vm::{Limits, VmCgroup, VmUser};

/// Everything but the VM.
pub(super) struct Prepared {
    pub(super) disk: RootDisk,
    pub(super) slot: NetworkSlot,
    pub(super) cgroup: Option<VmCgroup>,
}

/// Makes it all. Whatever one of them fails on, the others are given back.
pub(super) async fn prepare(
    host: &Shared,
    config: &SandboxConfig,
    template: &Template,
    directory: &SandboxDirectory,
    timings: &mut Timings,
) -> Result<Prepared, CreateSandboxError> {
    images::note(directory, &template.manifest.rootfs_sha256)?;
    let disk = timed(async {
        let bytes = template.manifest.size_mib << 20;
        let mapper = host.mapper.as_ref();
        Ok(RootDisk::make(mapper, directory, &template.rootfs, bytes).await?)
    });
    let slot = timed(take_slot(host, config));
    let (cgroups, limits) = (host.cgroups.clone(), Limits::of(config.resources));
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
            let errors = [disk_error, slot_error, cgroup.err()];
            Err(errors
                .into_iter()
                .flatten()
                .next()
                .unwrap_or(CreateSandboxError::Thread))
        }
    }
}

/// Gives back what a sandbox had that did not come to be, the disk first.
pub(super) async fn give_back(disk: Option<RootDisk>, slot: Option<NetworkSlot>) {
    if let Some(disk) = disk
        && let Err(error) = disk.remove().await
    {
        warn!(error = %Chain(&error), "the disk of a sandbox that was not created");
    }
    if let Some(slot) = slot
        && let Err(error) = slot.remove().await
    {
        warn!(error = %Chain(&error), "the slot of a sandbox that was not created");
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

async fn timed<T>(
    work: impl Future<Output = Result<T, CreateSandboxError>>,
) -> Result<(T, Duration), CreateSandboxError> {
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
