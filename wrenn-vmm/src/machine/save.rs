//! Makes a snapshot of a paused machine.

use std::time::Instant;

use crate::cpu::thread::{self, VcpuError};
use crate::machine::hypervisor::HypervisorError;
use crate::machine::{Devices, Machine};
use crate::snapshot::config::{CreateSnapshotConfig, SnapshotType};
use crate::snapshot::file::{self, WriteStateError};
use crate::snapshot::memory_file::{self, WriteMemoryError};
use crate::snapshot::state::{DeviceStates, MachineState};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// A snapshot could not be made. The machine stays as it was, and what it remembers of
/// changed pages too.
#[derive(Debug, thiserror::Error)]
pub enum CreateSnapshotError {
    /// It runs.
    #[error(
        "Cannot save the microVM state: Operation not allowed: save/restore unavailable while \
         running"
    )]
    Running,
    /// Changes are not known. (Firecracker 1.16 falls back on which pages are resident,
    /// which loses pages that are swapped out.)
    #[error(
        "Diff snapshots are not allowed on uVMs with dirty page tracking disabled; set \
         track_dirty_pages before the start or on load"
    )]
    NotTracked,
    /// vCPUs.
    #[error("Cannot save the microVM state")]
    Vcpu(#[from] VcpuError),
    /// Interrupts, clock, log of changes.
    #[error("Cannot save the microVM state")]
    Hypervisor(#[from] HypervisorError),
    /// The configuration.
    #[error("Cannot serialize the microVM state")]
    Configuration(#[from] serde_json::Error),
    /// State file.
    #[error("Cannot write the microVM state")]
    State(#[from] WriteStateError),
    /// Memory file.
    #[error("Cannot write memory file")]
    Memory(#[from] WriteMemoryError),
}

impl Machine {
    /// Writes the machine, which must be paused, to two files.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn create_snapshot(
        &self,
        config: &CreateSnapshotConfig,
    ) -> Result<(), CreateSnapshotError> {
        let is_tracked = self
            .config
            .machine_config
            .as_ref()
            .is_some_and(|machine| machine.track_dirty_pages);
        if config.snapshot_type == SnapshotType::Diff && !is_tracked {
            return Err(CreateSnapshotError::NotTracked);
        }

        let begun = Instant::now();
        let state = self.save()?;
        file::write(&config.snapshot_path, &state)?;
        log::info!(
            "CreateSnapshot: state took {} us.",
            begun.elapsed().as_micros()
        );

        let begun = Instant::now();
        self.hypervisor.collect_changes(&self.memory)?;
        let path = &config.mem_file_path;
        let written = match config.snapshot_type {
            SnapshotType::Full => memory_file::write_full(path, &self.memory, &self.background)?,
            SnapshotType::Diff => memory_file::write_changed(path, &self.memory)?,
        };
        // Only now, so that a snapshot that failed takes no changes with it.
        memory_file::forget_changes(&self.memory);
        log::info!(
            "CreateSnapshot: {} KiB of memory took {} us.",
            written.bytes >> 10,
            begun.elapsed().as_micros()
        );
        Ok(())
    }

    /// Reads everything but memory. Devices first: they may still raise interrupts while
    /// they come to rest, and those belong into what KVM saves.
    fn save(&self) -> Result<MachineState, CreateSnapshotError> {
        let devices = self.devices.save();
        let vcpus = thread::save_all(&self.vcpus, self.hypervisor.msrs())?;
        Ok(MachineState {
            configuration: serde_json::to_string(&self.config)?,
            memory: self
                .memory
                .iter()
                .map(|region| (region.start_addr().0, region.len()))
                .collect(),
            virtual_machine: self.hypervisor.save()?,
            vcpus,
            devices,
        })
    }
}

impl Devices {
    fn save(&self) -> DeviceStates {
        DeviceStates {
            drives: self.drives.iter().map(|(_, drive)| drive.state()).collect(),
            networks: self
                .networks
                .iter()
                .map(|(_, network)| network.state())
                .collect(),
            entropy: self.entropy.as_ref().map(|entropy| entropy.state()),
            serial: self.serial.state(),
            keyboard: self.keyboard.state(),
            balloon: self.balloon.as_ref().map(|balloon| balloon.state()),
        }
    }
}
