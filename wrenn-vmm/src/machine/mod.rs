//! The virtual machine: what it is made of, and what can be done with it once it runs.
//!
//! ```text
//! Resources ──boot──▶ Machine (paused) ──▶ running ◀──▶ paused ──save──▶ snapshot
//! snapshot ─restore─▶ Machine (paused) ──▶ …
//! ```
//!
//! `Resources` is what API requests put together; starting leaves it as it was if
//! anything fails, so that a client can correct the request and start again.

mod board;
mod build;
mod hypervisor;
mod resources;
mod restore;
mod save;

pub use build::{Environment, StartError};
pub use hypervisor::HypervisorError;
pub use resources::{
    BalloonError, BootSource, BootSourceError, Drive, DriveError, NetworkError, NetworkInterface,
    NoSuchInterface, Resources,
};
pub use restore::LoadSnapshotError;
pub use save::CreateSnapshotError;

use std::sync::Arc;

use crate::config::{DriveUpdate, NetworkInterfaceUpdate, RateLimiterConfig, VmConfig};
use crate::cpu::thread::{self, Vcpu, VcpuError};
use crate::devices::keyboard::{KeyboardBufferFull, KeyboardController};
use crate::devices::serial::SerialPort;
use crate::devices::vm_generation::VmGeneration;
use crate::memory::GuestMemory;
use crate::snapshot::memory_file::Background;
use crate::snapshot::pager::Pager;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::{Backing, Block, OpenDriveError};
use crate::virtio::net::Net;
use crate::virtio::rng::Entropy;
use crate::virtio::transport::{MmioTransport, Pausable};
use hypervisor::Hypervisor;

/// A machine that has been started.
pub struct Machine {
    /// First, since fields are dropped in this order: the vCPUs stop before memory goes.
    vcpus: Vec<Vcpu>,
    hypervisor: Hypervisor,
    memory: Arc<GuestMemory>,
    /// What lies behind pages of memory that nobody has touched.
    background: Background,
    #[expect(dead_code, reason = "keeps the page-fault server at work")]
    pager: Option<Pager>,
    devices: Devices,
    config: VmConfig,
}

/// All devices of a machine.
struct Devices {
    drives: Vec<(String, Arc<MmioTransport<Block>>)>,
    networks: Vec<(String, Arc<MmioTransport<Net>>)>,
    entropy: Option<Arc<MmioTransport<Entropy>>>,
    balloon: Option<Arc<MmioTransport<Balloon>>>,
    keyboard: Arc<KeyboardController>,
    serial: Arc<SerialPort>,
    generation: Arc<VmGeneration>,
}

impl Devices {
    fn pausable(&self) -> impl Iterator<Item = &dyn Pausable> {
        let drives = self
            .drives
            .iter()
            .map(|(_, device)| device.as_ref() as &dyn Pausable);
        let networks = self
            .networks
            .iter()
            .map(|(_, device)| device.as_ref() as &dyn Pausable);
        let entropy = self
            .entropy
            .iter()
            .map(|device| device.as_ref() as &dyn Pausable);
        let balloon = self
            .balloon
            .iter()
            .map(|device| device.as_ref() as &dyn Pausable);
        drives.chain(networks).chain(entropy).chain(balloon)
    }
}

/// A drive could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateDriveError {
    /// There is none.
    #[error("there is no drive {id:?}")]
    NoSuchDrive {
        /// Its id.
        id: String,
    },
    /// The new file does not do.
    #[error(transparent)]
    Open(#[from] OpenDriveError),
}

impl Machine {
    /// Stops vCPUs between two instructions, then devices between two requests. A request that
    /// takes long is put back into its queue.
    ///
    /// # Errors
    /// If a vCPU has stopped for good or does not answer. The machine goes on then.
    pub fn pause(&self) -> Result<(), VcpuError> {
        // First, since a vCPU that reads a device's register waits for the device.
        self.devices.pausable().for_each(Pausable::stop);
        match thread::pause_all(&self.vcpus) {
            Ok(()) => self.devices.pausable().for_each(Pausable::pause),
            Err(error) => {
                self.devices.pausable().for_each(Pausable::resume);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets devices and vCPUs go on.
    ///
    /// # Errors
    /// If a vCPU has stopped for good or does not answer.
    pub fn resume(&self) -> Result<(), VcpuError> {
        self.devices.pausable().for_each(Pausable::resume);
        thread::resume_all(&self.vcpus)
    }

    /// Presses Ctrl-Alt-Del.
    ///
    /// # Errors
    /// If the guest does not read its keyboard.
    pub fn press_control_alt_delete(&self) -> Result<(), KeyboardBufferFull> {
        self.devices.keyboard.press_control_alt_delete()
    }

    /// The serial port, for its input.
    pub fn serial(&self) -> &Arc<SerialPort> {
        &self.devices.serial
    }

    /// What the machine was made from, with later changes.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Puts another file behind a drive and tells the guest, or changes its limits. Requests
    /// that are being worked on finish on the old file.
    ///
    /// # Errors
    /// If there is no such drive or no such file; nothing has changed then.
    pub fn update_drive(&mut self, update: DriveUpdate) -> Result<(), UpdateDriveError> {
        let id = update.drive_id;
        let drive = self.devices.drives.iter().find(|(name, _)| *name == id);
        let config = self
            .config
            .drives
            .iter_mut()
            .find(|drive| drive.drive_id == id);
        let (Some((_, drive)), Some(config)) = (drive, config) else {
            return Err(UpdateDriveError::NoSuchDrive { id });
        };
        if let Some(path) = update.path_on_host {
            let backing = Backing::open(&path, config.is_read_only.unwrap_or(false))?;
            drive.with_device(|device| device.replace(backing));
            drive.configuration_changed();
            config.path_on_host = Some(path);
        }
        if let Some(limits) = update.rate_limiter {
            drive.with_device(|device| device.limiter().update(limits));
            drive.wake_queues();
            config.rate_limiter = RateLimiterConfig::updated(config.rate_limiter, Some(limits));
        }
        Ok(())
    }

    /// Changes the limits of a network interface.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn update_network(
        &mut self,
        update: &NetworkInterfaceUpdate,
    ) -> Result<(), NoSuchInterface> {
        let id = &update.iface_id;
        let network = self.devices.networks.iter().find(|(name, _)| name == id);
        let mut configs = self.config.network_interfaces.iter_mut();
        let config = configs.find(|config| config.iface_id == *id);
        let (Some((_, network)), Some(config)) = (network, config) else {
            return Err(NoSuchInterface(id.clone()));
        };
        network.with_device(|device| {
            let limiters = device.limiters();
            if let Some(limits) = update.rx_rate_limiter {
                limiters.receive.update(limits);
            }
            if let Some(limits) = update.tx_rate_limiter {
                limiters.transmit.update(limits);
            }
        });
        network.wake_queues();
        config.update(update);
        Ok(())
    }
}
