//! Taking over a sandbox whose owner died or went away.
//!
//! ```text
//! sandbox.json says      its VMM         then
//! ───────────────────    ─────────────   ─────────────────────────────────────────
//! pending, stopped       any             swept: promised to nobody, or to be gone
//! running                alive           taken over, slot and disk with it
//! running                gone            error, its data kept
//! error                  -               error, as before
//! ```

use std::time::Duration;

use tracing::{info, warn};

use super::directory::{DirectoryError, SandboxDirectory};
use super::host::Shared;
use super::record::{RecordError, SandboxRecord};
use super::{CONSOLE, Remains, Sandbox, State, Timings};
use crate::SandboxId;
use crate::guest::{AccessToken, ENVD_PORT, GuestClient};
use crate::network::SlotNumber;
use crate::vm::Vm;

/// How long the daemon of a guest that is taken over may take to answer. It is no
/// condition: a guest that is busy is taken over all the same.
const GREETING: Duration = Duration::from_secs(5);

/// A sandbox that was taken over.
#[derive(Debug)]
pub enum Adopted {
    /// It runs as if nothing had happened.
    Running(Box<Sandbox>),
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
    /// What is written of it cannot be read.
    #[error("cannot read what is written of sandbox {id}; its files are left as they are")]
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

pub(super) async fn adopt(host: &Shared, id: SandboxId) -> Result<Adopted, AdoptError> {
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
        other => {
            directory.leave();
            return Err(match other {
                Ok(_) => AdoptError::Unknown(id),
                Err(source) => AdoptError::Record { id, source },
            });
        }
    };
    match record.state {
        State::Running => Ok(take_over(host, directory, record).await),
        State::Error => {
            let reason = record.reason.clone().unwrap_or_default();
            Ok(Adopted::Broken(Box::new(Remains::write(
                directory, record, reason,
            ))))
        }
        other => {
            let reason = format!("its owner died while it was {other}");
            Ok(Adopted::Broken(Box::new(Remains::write(
                directory, record, reason,
            ))))
        }
    }
}

async fn take_over(host: &Shared, directory: SandboxDirectory, record: SandboxRecord) -> Adopted {
    let broken = |directory, record, reason: String| {
        warn!(reason, "a sandbox cannot be taken over");
        Adopted::Broken(Box::new(Remains::write(directory, record, reason)))
    };
    let id = directory.id().clone();
    let number = record.slot.and_then(SlotNumber::new);
    let vm = record
        .vmm
        .as_ref()
        .and_then(|vmm| Vm::adopt(vmm, &directory.file("vmm.sock"), &directory.file(CONSOLE)));
    let slot = match number {
        Some(number) => match host.network.adopt_slot(number, id.as_str()).await {
            Ok(slot) => Some(slot),
            Err(error) => {
                warn!(sandbox_id = %id, %error, "the slot of a sandbox without an owner");
                None
            }
        },
        None => None,
    };
    let (vm, slot) = match (vm, slot) {
        (Some(vm), Some(slot)) => (vm, slot),
        (vm, slot) => {
            let lost = if vm.is_none() {
                "VM ended"
            } else {
                "network was removed"
            };
            if let Some(vm) = vm {
                vm.kill().await;
            }
            if let Some(Err(error)) = match slot {
                Some(slot) => Some(slot.remove().await),
                None => None,
            } {
                warn!(sandbox_id = %id, %error, "the slot of a broken sandbox");
            }
            return broken(
                directory,
                record,
                format!("its {lost} while nobody owned it"),
            );
        }
    };
    let address = (slot.reachable_address(), ENVD_PORT).into();
    let token = record.token.clone().map(AccessToken::new);
    match GuestClient::new(address, token) {
        Ok(guest) => {
            if let Err(error) = guest.wait_healthy(GREETING).await {
                warn!(sandbox_id = %id, %error, "taken over, but its guest does not answer yet");
            }
            info!(sandbox_id = %id, "taken over");
            Adopted::Running(Box::new(Sandbox {
                vm,
                slot,
                directory,
                guest,
                record,
                timings: Timings::default(),
            }))
        }
        Err(error) => {
            vm.kill().await;
            slot.leave();
            broken(directory, record, format!("its record is damaged: {error}"))
        }
    }
}
