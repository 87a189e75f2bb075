//! A sandbox: one VM with its disk, network slot and guest daemon, as one value.
//!
//! ```text
//! Host::create
//!   ├─ SandboxDirectory   locked while its owner lives; a dead owner's is swept
//!   ├─┬─ disk             private copy of the template's       ┐ at the same time
//!   │ └─ NetworkSlot      namespace, veth, TAP, rules           ┘
//!   ├─ Vm                 boots once its rules stand
//!   └─ GuestClient        healthy, then told its time, entropy, token and name
//! ```
//!
//! Teardown is one ordered sequence: VM, slot, directory. Whatever a step fails on, and
//! whenever the creating future is dropped, what was made so far is given back; what a
//! killed process leaves is recognised by its sandbox id and swept by the next
//! [`Host::open`].

mod create;
mod directory;
mod disk;
mod host;
mod images;
mod sweep;

pub use create::{CreateSandboxError, GuestAccess, SandboxConfig, Timings};
pub use directory::DirectoryError;
pub use disk::CopyDiskError;
pub use host::{Host, HostConfig, OpenHostError};
pub use images::SandboxImages;
pub use sweep::{Leftovers, SweepError};

use std::net::SocketAddr;
use std::path::Path;

use crate::SandboxId;
use crate::guest::{Command, CommandOutput, GuestClient, GuestError};
use crate::network::{NetworkSlot, RemoveSlotError};
use crate::vm::{ExitReason, Vm};
use directory::SandboxDirectory;

/// A running sandbox.
#[must_use = "dropping a sandbox destroys it in the background"]
#[derive(Debug)]
pub struct Sandbox {
    // Fields are dropped in this order: the VM first, its files last.
    vm: Vm,
    slot: NetworkSlot,
    directory: SandboxDirectory,
    guest: GuestClient,
    timings: Timings,
}

/// What could not be given back. It is tried again in the background and by later sweeps.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
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

    /// The sandbox's directory on this host.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// How long each step of its creation took.
    #[must_use]
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started or the connection breaks.
    pub async fn exec(&self, command: &Command) -> Result<CommandOutput, GuestError> {
        self.guest.output(command).await
    }

    /// Ends when the VM ends, by itself or by anybody's hand.
    pub async fn exited(&self) -> ExitReason {
        self.vm.exited().await
    }

    /// Ends the sandbox and gives back all that it had, data included.
    ///
    /// # Errors
    /// When something could not be given back. The rest was, all the same.
    ///
    /// # Cancel safety
    /// Once begun, the rest is given back in the background.
    pub async fn destroy(self) -> Result<(), DestroyError> {
        let Self {
            vm,
            slot,
            directory,
            ..
        } = self;
        let id = directory.id().clone();
        vm.kill().await;
        let slot = slot.remove().await;
        let files = directory.remove().await;
        slot.map_err(|source| DestroyError::Slot {
            id: id.clone(),
            source,
        })?;
        files.map_err(|source| DestroyError::Directory { id, source })
    }
}
