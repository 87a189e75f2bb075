//! A sandbox: one VM with its disk, network slot and guest daemon, as one value.
//!
//! ```text
//! Host::create
//!   ├─ SandboxDirectory   locked while its owner lives; a dead owner's is swept
//!   ├─┬─ RootDisk         what is written, over the template's  ┐
//!   │ ├─ NetworkSlot      namespace, veth, TAP, rules           ├ at the same time
//!   │ └─ VmCgroup         limits                                ┘
//!   ├─ Vm                 boots in its jail once its rules stand
//!   └─ GuestClient        healthy, then told its time, entropy, token and name
//! ```
//!
//! Teardown is one ordered sequence: VM with its cgroup, disk and slot, directory. Whatever a step
//! fails on, and whenever the creating future is dropped, what was made so far is given
//! back.
//!
//! Resources whose owner died are recognised by their sandbox id, and [`Keep`] says what becomes
//! of them. Where a sandbox was only to last while its owner did, the kernel kills its VM when the
//! owner dies, and the next [`Host::open`] sweeps the rest. One that was to last until it is
//! destroyed goes on running, and [`Host::adopt`] takes it over.
//!
//! Such a sandbox can also be [paused](Sandbox::pause): then it is a [`Paused`] one, which
//! uses nothing but the room of its files, until it is [resumed](Paused::resume).
//!
//! Any sandbox can be [frozen](Sandbox::freeze) while it goes on. Of a [`Frozen`] one others
//! are [made](Host::create_from), again and again; with a [name](Frozen::name) it is a
//! template.
//!
//! A [`Sandbox`] has one owner and no opinion about requests that cross each other; a
//! [`Fleet`](crate::fleet::Fleet) gives each sandbox a task and everybody else a handle.

mod activity;
mod adopt;
mod builds;
mod capture;
mod config;
mod create;
mod directory;
mod disk;
mod frozen;
mod greeting;
mod host;
mod images;
mod memory;
mod named;
mod pause;
mod paused;
mod prepare;
mod record;
mod references;
mod remains;
mod restore;
mod state;
mod sweep;
mod upkeep;

pub use activity::{Activity, InUse};
pub use adopt::{AdoptError, Adopted};
pub use builds::CollectBuildsError;
pub use capture::{CaptureError, CaptureTimings};
pub use config::{GuestAccess, Keep, SandboxConfig};
pub use create::{CreateSandboxError, START_TAG, Timings};
pub use directory::DirectoryError;
pub use disk::{CopyDiskError, FlushDiskError, MakeDiskError, RestoreRootDiskError};
pub use frozen::Frozen;
pub use greeting::GreetError;
#[cfg(test)]
pub(crate) use greeting::Greeting;
pub use host::{Host, HostConfig, OpenHostError};
pub use images::SandboxImages;
pub use memory::MemorySupply;
pub use named::{
    DeleteSnapshotError, NameSnapshotError, NamedSnapshot, check_free, default_config,
};
pub use pause::{AfterPause, FailedPause, PauseError, PauseReason, PauseTimings};
pub use paused::{AfterResume, Compacted, FailedResume, Paused};
pub use record::RecordError;
pub use remains::Remains;
pub use restore::ResumeError;
pub use state::{Event, State};
pub use sweep::{Leftovers, SweepError};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::devicemapper::RemoveDiskError;
use crate::guest::{Command, CommandOutput, GuestClient, GuestError};
use crate::network::{
    CountError, EgressPolicy, NetworkSlot, RemoveSlotError, SetEgressError, SlotCounters,
    SlotNumber,
};
use crate::snapshot::BuildId;
use crate::uffd::process::PagerProcess;
use crate::vm::{ExitReason, LaunchSpec, Vm};
use crate::{RootDirectory, SandboxId};
use directory::SandboxDirectory;
use disk::RootDisk;
use host::Shared;
use record::SandboxRecord;

/// How long a VM may outlive its pager, which ends when it sees that the VM has.
const LAST_PAGES: Duration = Duration::from_millis(500);

/// A running sandbox. Dropping one that is kept [while it is owned](Keep::WhileOwned) destroys it
/// in the background; dropping any other leaves it running, as [`leave`](Self::leave) does: a
/// program that ends by an error takes no data along.
#[must_use = "a dropped sandbox is destroyed, or left running without an owner"]
#[derive(Debug)]
pub struct Sandbox {
    // Fields are dropped in this order: the VM first, its files last.
    vm: Vm,
    pager: Option<PagerProcess>,
    /// Whether its VM was ended because its pager has.
    lost_pager: AtomicBool,
    disk: RootDisk,
    slot: NetworkSlot,
    directory: SandboxDirectory,
    guest: GuestClient,
    record: SandboxRecord,
    timings: Timings,
    host: Arc<Shared>,
    /// Why its guest does not go on at the moment, if so.
    halted: Option<String>,
    /// Whether its guest's programs may be frozen, and must be thawed once it answers.
    programs_frozen: AtomicBool,
}

/// What could not be given back. It is tried again in the background and by later sweeps.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// The disk.
    #[error("cannot give back the disk of {id}")]
    Disk {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: RemoveDiskError,
    },
    /// The network slot.
    #[error("cannot give back the network slot of {id}")]
    Slot {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: RemoveSlotError,
    },
    /// The files.
    #[error("cannot remove the files of {id}")]
    Directory {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: DirectoryError,
    },
    /// Processes, disk or slot of a sandbox that was not adopted.
    #[error("cannot remove all that is there of {id}")]
    Orphaned {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: SweepError,
    },
}

/// Why it could not be changed what a guest may connect to.
#[derive(Debug, thiserror::Error)]
pub enum ChangeEgressError {
    /// The rules could not be exchanged.
    #[error("cannot change what the sandbox may connect to")]
    Rules(#[from] SetEgressError),
    /// It could not be written down.
    #[error("cannot write down what the sandbox may connect to")]
    Record(#[from] RecordError),
}

/// The log of a sandbox's console, which its guest writes.
#[must_use]
pub fn console_log(root: &RootDirectory, id: &SandboxId) -> PathBuf {
    LaunchSpec::console_in(&root.sandbox(id))
}

impl Sandbox {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        self.directory.id()
    }

    /// The client of the daemon in its guest.
    #[must_use]
    pub fn guest(&self) -> &GuestClient {
        &self.guest
    }

    /// The number of its network slot.
    #[must_use]
    pub fn slot(&self) -> SlotNumber {
        self.slot.number()
    }

    /// Where a port of the guest is reached from this host.
    #[must_use]
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.slot.reachable_address(), port))
    }

    /// The virtual machine.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The process id of the pager that feeds it memory, where one does.
    #[must_use]
    pub fn pager_pid(&self) -> Option<u32> {
        self.pager.as_ref().map(PagerProcess::pid)
    }

    /// The sandbox's directory on this host.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where everything lies.
    pub(crate) fn root(&self) -> &RootDirectory {
        &self.host.root
    }

    /// How long each step of its creation, or of its last resume, took.
    #[must_use]
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// What it was made from and to be.
    #[must_use]
    pub fn config(&self) -> SandboxConfig {
        self.record.config()
    }

    /// The build that it was resumed from, if it was.
    #[must_use]
    pub fn build(&self) -> Option<&BuildId> {
        self.record.build.as_ref()
    }

    /// When its creation began, in RFC 3339.
    #[must_use]
    pub fn created_at(&self) -> &str {
        &self.record.created_at
    }

    /// Changes how long it may be idle, zero for any length.
    ///
    /// # Errors
    /// When that cannot be written down; the old length holds then.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError> {
        let before = self.record.timeout_sec;
        self.record.timeout_sec = timeout.as_secs();
        self.write_record()
            .inspect_err(|_| self.record.timeout_sec = before)
    }

    /// Changes what its guest may connect to, at once and as a whole. Connections to what
    /// is refused from now on end.
    ///
    /// # Errors
    /// When that cannot be done, or not be written down; the old policy holds then.
    pub async fn set_egress(&mut self, policy: EgressPolicy) -> Result<(), ChangeEgressError> {
        self.slot.set_egress(&policy).await?;
        let before = std::mem::replace(&mut self.record.egress, policy);
        let Err(error) = self.write_record() else {
            return Ok(());
        };
        self.record.egress = before;
        self.slot.set_egress(&self.record.egress).await?;
        Err(error.into())
    }

    /// What its guest has sent and received.
    ///
    /// # Errors
    /// When its network is gone.
    pub async fn traffic(&self) -> Result<SlotCounters, CountError> {
        self.slot.counters().await
    }

    /// Writes down what a later owner must know, for a sandbox that may have one.
    fn write_record(&self) -> Result<(), RecordError> {
        match self.record.keep {
            Keep::WhileOwned => Ok(()),
            Keep::UntilDestroyed => self.record.write(self.directory.path()),
        }
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started or the connection breaks.
    pub async fn exec(&self, command: &Command) -> Result<CommandOutput, GuestError> {
        self.guest.output(command).await
    }

    /// Ends when the VM ends, by itself or by anybody's hand. One whose pager has ended
    /// would wait for ever for its memory, and is ended.
    pub async fn exited(&self) -> ExitReason {
        if let Some(pager) = &self.pager {
            tokio::select! {
                reason = self.vm.exited() => return reason,
                exit = pager.exited() => {
                    let ended = tokio::time::timeout(LAST_PAGES, self.vm.exited()).await;
                    if ended.is_err() {
                        tracing::warn!(sandbox_id = %self.id(), ?exit, "its pager has ended");
                        self.lost_pager.store(true, Ordering::Relaxed);
                    }
                }
            }
            self.vm.end();
        }
        self.vm.exited().await
    }

    /// Whether its VM was ended because its pager had ended.
    #[must_use]
    pub fn lost_pager(&self) -> bool {
        self.lost_pager.load(Ordering::Relaxed)
    }

    /// Goes away without it: it keeps running, and [`Host::adopt`] finds it again. Only for
    /// one that is kept [until it is destroyed](Keep::UntilDestroyed); any other is ended by
    /// the kernel when this process ends, or by the next [`Host::open`].
    pub fn leave(self) {
        self.vm.leave();
        self.disk.leave();
        self.slot.leave();
        self.directory.leave();
    }

    /// Sets whether dropping it leaves it as it is.
    fn set_kept(&mut self, kept: bool) {
        self.vm.set_kept(kept);
        self.disk.set_kept(kept);
        self.slot.set_kept(kept);
        self.directory.set_kept(kept);
    }

    /// Its VM is gone or must go: gives back what only a VM needs and keeps the data.
    pub async fn fail(self, reason: String) -> Remains {
        Remains::of(self, reason).await
    }

    /// Ends the sandbox and gives back all that it had, data included.
    ///
    /// # Errors
    /// When something could not be given back. The rest was, all the same.
    ///
    /// # Cancel safety
    /// Once begun, the rest is given back in the background.
    pub async fn destroy(mut self) -> Result<(), DestroyError> {
        self.set_kept(false);
        // If we die from here on, the next owner goes on with it.
        self.record.state = State::Stopped;
        if let Err(error) = self.write_record() {
            tracing::warn!(sandbox_id = %self.id(), %error, "a sandbox that is being destroyed");
        }
        let Self {
            vm,
            pager,
            disk,
            slot,
            directory,
            ..
        } = self;
        let id = directory.id().clone();
        vm.kill().await;
        memory::end(pager).await;
        // The disk needs its VM gone, and the files below it the disk.
        let (disk, slot) = tokio::join!(disk.remove(), slot.remove());
        let files = directory.remove().await;
        disk.map_err(|source| DestroyError::Disk {
            id: id.clone(),
            source,
        })?;
        slot.map_err(|source| DestroyError::Slot {
            id: id.clone(),
            source,
        })?;
        files.map_err(|source| DestroyError::Directory { id, source })
    }
}
