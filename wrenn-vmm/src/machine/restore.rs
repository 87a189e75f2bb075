//! Makes a machine out of a snapshot.
//!
//! ```text
//! state file ─▶ drives, TAP interfaces opened ─▶ memory mapped ─▶ vCPUs ─▶ KVM's own state
//!            ─▶ devices ─▶ new generation id ─▶ threads, paused
//! ```
//!
//! Interrupts are raised last of all, since KVM's state overwrites those raised before.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestAddress;

use crate::config::{
    EntropyConfig, MachineConfig, MachineConfigError, MachineConfigUpdate, VmConfig,
};
use crate::cpu::compatibility::{self, IncompatibleCpuError};
use crate::cpu::state::{VcpuState, VcpuStateError};
use crate::devices::keyboard::KeyboardState;
use crate::devices::serial::SerialState;
use crate::machine::board::Board;
use crate::machine::build::{self, Environment, StartError};
use crate::machine::hypervisor::{ClockOnLoad, Hypervisor, HypervisorError};
use crate::machine::{BalloonError, DriveError, Machine, NetworkError, Resources};
use crate::memory::{self, GuestMemory, HugePages, MemoryError, host_length};
use crate::snapshot::config::{
    LoadSnapshotConfig, MemoryBackendConfig, MemoryBackendType, NetworkOverride,
};
use crate::snapshot::file::{self, ReadStateError};
use crate::snapshot::memory_file::Background;
use crate::snapshot::pager::{Pager, PagerError};
use crate::snapshot::state::MachineState;
use crate::sys;

/// A snapshot could not be loaded. Nothing of it is left, and another may be tried.
#[derive(Debug, thiserror::Error)]
pub enum LoadSnapshotError {
    /// The state file.
    #[error("Failed to get snapshot state from file")]
    State(#[from] ReadStateError),
    /// The configuration in the state file.
    #[error("the configuration in the state file makes no sense")]
    Configuration(#[source] serde_json::Error),
    /// No configuration of a machine, or an impossible one.
    #[error("the machine in the state file cannot be")]
    Machine(#[from] MachineConfigError),
    /// The parts of the state file do not belong together.
    #[error("the state file does not describe one machine: {0}")]
    Inconsistent(&'static str),
    /// An override for nothing.
    #[error("Failed to get snapshot state from file: Unknown Network Device: {0}")]
    UnknownNetwork(String),
    /// A drive's file.
    #[error("cannot open drive {id} of the snapshot")]
    Drive {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: DriveError,
    },
    /// A TAP interface.
    #[error("cannot open network interface {id} of the snapshot")]
    Network {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: NetworkError,
    },
    /// Entropy.
    #[error("cannot set up the entropy device")]
    Entropy(#[source] DriveError),
    /// Balloon.
    #[error("cannot set up the balloon")]
    Balloon(#[source] BalloonError),
    /// Mapping.
    #[error("Failed to load guest memory")]
    Memory(#[from] MemoryError),
    /// Memory file.
    #[error("Failed to load guest memory: cannot {what} {path}")]
    MemoryFile {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Memory file of another machine.
    #[error("Failed to load guest memory: {path} has {found} bytes where the guest has {expected}")]
    MemoryFileSize {
        /// Which file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// Size of memory.
        expected: u64,
    },
    /// A memory file is no huge pages.
    #[error(
        "Failed to load guest memory: Cannot restore hugetlbfs backed snapshot by mapping the \
         memory file. Please use uffd."
    )]
    HugePagesFromFile,
    /// Page-fault server.
    #[error("Failed to load guest memory")]
    Pager(#[from] PagerError),
    /// KVM.
    #[error("cannot restore the virtual machine")]
    Hypervisor(#[from] HypervisorError),
    /// The CPU of this host.
    #[error(transparent)]
    Cpu(#[from] IncompatibleCpuError),
    /// vCPUs.
    #[error("cannot restore vCPU {index}")]
    Vcpu {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        source: VcpuStateError,
    },
    /// Devices and threads.
    #[error("cannot build the machine")]
    Build(#[from] StartError),
}

impl Machine {
    /// Builds the machine of a snapshot; it is paused.
    ///
    /// # Errors
    /// If any part of the snapshot is missing, damaged or does not fit this host.
    pub fn restore(
        params: &LoadSnapshotConfig,
        environment: &mut Environment<'_>,
    ) -> Result<Self, LoadSnapshotError> {
        let mut phases = Phases::begin();
        let state = file::read(&params.snapshot_path)?;
        phases.done("state file");
        let config = configuration(&state, params)?;
        let resources = open(&config)?;
        check(&state, &config)?;
        phases.done("drives and network");

        let (memory, background, pager) = map(&state, &resources.machine, &params.mem_backend)?;
        let memory = Arc::new(memory);
        let hypervisor = Hypervisor::new()?;
        hypervisor.set_memory(&memory, params.track_dirty_pages)?;
        phases.done("memory");

        let vcpus = (0u8..)
            .zip(&state.vcpus)
            .map(|(index, saved)| restore_vcpu(&hypervisor, index, saved))
            .collect::<Result<Vec<_>, _>>()?;
        let clock = if params.clock_realtime {
            ClockOnLoad::Jumps
        } else {
            ClockOnLoad::Continues
        };
        hypervisor.restore(&state.virtual_machine, clock)?;
        phases.done("vCPUs");

        let discarder = background
            .discarder()
            .map_err(build::host("use the memory file"))?;
        let board = Board::new(&hypervisor, &memory, discarder);
        let assembled = board.assemble(&resources, Some(&state.devices), environment)?;
        // The guest must not draw the same random numbers as another from this snapshot.
        let generation = &assembled.devices.generation;
        generation
            .renew(&memory)
            .and_then(|()| generation.notify())
            .map_err(StartError::from)?;
        let vcpus = build::spawn_vcpus(vcpus, &assembled.buses, environment)?;
        build::serve(&assembled.devices, environment)?;
        phases.done("devices");
        Ok(Self {
            vcpus,
            hypervisor,
            memory,
            background,
            pager,
            devices: assembled.devices,
            config,
        })
    }
}

/// Logs how long each part takes.
struct Phases(Instant);

impl Phases {
    fn begin() -> Self {
        Self(Instant::now())
    }

    fn done(&mut self, what: &str) {
        let elapsed = self.0.elapsed().as_micros();
        log::info!("LoadSnapshot: {what} took {elapsed} us.");
        self.0 = Instant::now();
    }
}

/// The saved configuration, with what this load changes about it.
fn configuration(
    state: &MachineState,
    params: &LoadSnapshotConfig,
) -> Result<VmConfig, LoadSnapshotError> {
    let mut config: VmConfig =
        serde_json::from_str(&state.configuration).map_err(LoadSnapshotError::Configuration)?;
    if let Some(machine) = &mut config.machine_config {
        machine.track_dirty_pages = params.track_dirty_pages;
    }
    for NetworkOverride {
        iface_id,
        host_dev_name,
    } in &params.network_overrides
    {
        config
            .network_interfaces
            .iter_mut()
            .find(|network| network.iface_id == *iface_id)
            .ok_or_else(|| LoadSnapshotError::UnknownNetwork(iface_id.clone()))?
            .host_dev_name
            .clone_from(host_dev_name);
    }
    Ok(config)
}

/// Opens everything that the configuration names but kernel and initrd, which a running
/// guest does not need any more.
fn open(config: &VmConfig) -> Result<Resources, LoadSnapshotError> {
    let mut resources = Resources::default();
    let machine = config.machine_config.clone().unwrap_or_default();
    resources.update_machine(&MachineConfigUpdate::from(machine))?;
    for drive in &config.drives {
        resources
            .set_drive(drive.clone())
            .map_err(|source| LoadSnapshotError::Drive {
                id: drive.drive_id.clone(),
                source,
            })?;
    }
    for network in &config.network_interfaces {
        resources
            .set_network(network.clone())
            .map_err(|source| LoadSnapshotError::Network {
                id: network.iface_id.clone(),
                source,
            })?;
    }
    if let Some(EntropyConfig { rate_limiter }) = &config.entropy {
        resources
            .set_entropy(EntropyConfig {
                rate_limiter: *rate_limiter,
            })
            .map_err(LoadSnapshotError::Entropy)?;
    }
    if let Some(balloon) = config.balloon {
        resources
            .set_balloon(balloon)
            .map_err(LoadSnapshotError::Balloon)?;
    }
    Ok(resources)
}

/// Whether the parts of the state belong together. Each part checks its own contents.
fn check(state: &MachineState, config: &VmConfig) -> Result<(), LoadSnapshotError> {
    let machine = config.machine_config.clone().unwrap_or_default();
    let devices = &state.devices;
    let checks = [
        (
            state.memory == memory::regions(machine.mem_size_mib),
            "memory is laid out differently",
        ),
        (
            state.vcpus.len() == usize::from(machine.vcpu_count),
            "number of vCPUs",
        ),
        (
            devices.serial.version == SerialState::VERSION,
            "version of the serial port",
        ),
        (
            devices.keyboard.version == KeyboardState::VERSION,
            "version of the keyboard controller",
        ),
        (
            devices.drives.len() == config.drives.len(),
            "number of drives",
        ),
        (
            devices.networks.len() == config.network_interfaces.len(),
            "number of network interfaces",
        ),
        (
            devices.entropy.is_some() == config.entropy.is_some(),
            "entropy device",
        ),
        (
            devices.balloon.is_some() == config.balloon.is_some(),
            "balloon",
        ),
    ];
    match checks.into_iter().find(|(holds, _)| !holds) {
        None => Ok(()),
        Some((_, what)) => Err(LoadSnapshotError::Inconsistent(what)),
    }
}

fn map(
    state: &MachineState,
    machine: &MachineConfig,
    backend: &MemoryBackendConfig,
) -> Result<(GuestMemory, Background, Option<Pager>), LoadSnapshotError> {
    let path = &backend.backend_path;
    let allocate = || {
        memory::allocate(
            machine.mem_size_mib,
            machine.huge_pages,
            machine.track_dirty_pages,
        )
    };
    match backend.backend_type {
        MemoryBackendType::File if machine.huge_pages == HugePages::Size2Mib => {
            Err(LoadSnapshotError::HugePagesFromFile)
        }
        MemoryBackendType::File => {
            let file = open_memory(path, &state.memory)?;
            let memory = allocate()?;
            let mut offset = 0;
            for (start, length) in &state.memory {
                let start = GuestAddress(*start);
                sys::memory::map_file(&memory, start, host_length(*length), &file, offset)
                    .map_err(memory_file("map", path))?;
                offset += length;
            }
            Ok((memory, Background::File(file), None))
        }
        MemoryBackendType::Uffd => {
            let memory = allocate()?;
            let pager = Pager::hand_over(&memory, machine.huge_pages, path)?;
            Ok((memory, Background::Pager, Some(pager)))
        }
    }
}

fn memory_file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LoadSnapshotError {
    move |source| LoadSnapshotError::MemoryFile {
        what,
        path: path.into(),
        source,
    }
}

fn open_memory(path: &Path, regions: &[(u64, u64)]) -> Result<File, LoadSnapshotError> {
    let file = File::open(path).map_err(memory_file("open", path))?;
    let found = file.metadata().map_err(memory_file("look at", path))?.len();
    let expected = regions.iter().map(|(_, length)| length).sum();
    if found == expected {
        Ok(file)
    } else {
        Err(LoadSnapshotError::MemoryFileSize {
            path: path.into(),
            found,
            expected,
        })
    }
}

fn restore_vcpu(
    hypervisor: &Hypervisor,
    index: u8,
    saved: &VcpuState,
) -> Result<kvm_ioctls::VcpuFd, LoadSnapshotError> {
    let vcpu = hypervisor.create_vcpu(index)?;
    if index == 0 {
        let supported = hypervisor.supported_cpuid()?;
        let able = VcpuState::cpuid_of(&vcpu, &supported);
        let able = able.map_err(|source| LoadSnapshotError::Vcpu { index: 0, source })?;
        compatibility::check(&saved.cpuid, &able)?;
    }
    saved
        .restore(&vcpu)
        .map_err(|source| LoadSnapshotError::Vcpu {
            index: index.into(),
            source,
        })?;
    Ok(vcpu)
}
