//! Makes a machine out of resources and starts it.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;

use crate::boot::acpi::{self, AcpiError, VirtioWindow};
use crate::boot::kernel::{self, LoadError, LoadedKernel};
use crate::boot::parameters::{self, ParametersError};
use crate::config::MachineConfig;
use crate::cpu::cpuid::{self, Topology};
use crate::cpu::msrs::{self, MsrsError};
use crate::cpu::registers::{self, RegistersError};
use crate::cpu::thread::{Buses, EndEvents, Vcpu, VcpuError};
use crate::devices::bus::RangeTaken;
use crate::devices::console::ConsoleInput;
use crate::devices::vm_generation::GenerationError;
use crate::event_loop::{EventHandler, EventLoop};
use crate::layout;
use crate::machine::board::Board;
use crate::machine::hypervisor::{Hypervisor, HypervisorError};
use crate::machine::{BootSource, Devices, Machine, Resources};
use crate::memory::discard::Discarder;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::seccomp::Filters;
use crate::snapshot::memory_file::Background;
use crate::virtio::VirtioDevice;
use crate::virtio::transport::{MmioTransport, TransportError};

/// What surrounds a machine in this process.
pub struct Environment<'a> {
    /// Main thread's loop, which serves network and entropy.
    pub events: &'a mut EventLoop,
    /// Where the serial port prints.
    pub console: ConsoleInput,
    /// How the machine's end is told; also goes to vCPU threads.
    pub ends: &'a EndEvents,
    /// What the machine's threads may do.
    pub filters: &'a Filters,
    /// Becomes readable when the guest has read all serial input.
    pub input_wanted: EventFd,
}

/// The machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing to boot.
    #[error("Cannot start microvm without kernel configuration.")]
    NoKernel,
    /// More devices than interrupt lines.
    #[error("there are {0} virtio devices, and interrupt lines for {most} of them",
        most = layout::VIRTIO_INTERRUPT_LAST - layout::VIRTIO_INTERRUPT_FIRST + 1)]
    TooManyDevices(usize),
    /// Guest memory.
    #[error("cannot set up guest memory")]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error("cannot set up the virtual machine")]
    Hypervisor(#[from] HypervisorError),
    /// Kernel or initrd.
    #[error("cannot load kernel or initrd")]
    Load(#[from] LoadError),
    /// Boot parameters.
    #[error("cannot pass boot parameters")]
    Parameters(#[from] ParametersError),
    /// ACPI.
    #[error("cannot describe the hardware")]
    Acpi(#[from] AcpiError),
    /// CPUID.
    #[error("cannot set CPU features of a vCPU")]
    Cpuid(#[source] kvm_ioctls::Error),
    /// Model-specific registers.
    #[error("cannot set up a vCPU")]
    Msrs(#[from] MsrsError),
    /// Registers.
    #[error("cannot set up a vCPU")]
    Registers(#[from] RegistersError),
    /// Threads of vCPUs.
    #[error("cannot run vCPUs")]
    Vcpu(#[from] VcpuError),
    /// Virtio.
    #[error("cannot set up a virtio device")]
    Transport(#[from] TransportError),
    /// Two devices at one address.
    #[error("cannot place a device")]
    Bus(#[from] RangeTaken),
    /// Serial port.
    #[error("cannot put saved state into the serial port")]
    Serial(#[source] vm_superio::serial::Error<io::Error>),
    /// VM generation id.
    #[error("cannot set up the VM generation id")]
    Generation(#[from] GenerationError),
    /// Events, descriptors, threads.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(super) const fn host(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Host { what, source }
}

pub(super) fn event() -> Result<EventFd, StartError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("create an event"))
}

impl Machine {
    /// Builds the machine; its vCPUs stand at the kernel's first instruction, paused.
    ///
    /// # Errors
    /// If any part fails. `resources` is unchanged then.
    pub fn boot(
        resources: &Resources,
        environment: &mut Environment<'_>,
    ) -> Result<Self, StartError> {
        let source = resources.boot.as_ref().ok_or(StartError::NoKernel)?;
        let config = &resources.machine;
        let memory = Arc::new(memory::allocate(
            config.mem_size_mib,
            config.huge_pages,
            config.track_dirty_pages,
        )?);
        let hypervisor = Hypervisor::new()?;
        hypervisor.set_memory(&memory, config.track_dirty_pages)?;

        let board = Board::new(&hypervisor, &memory, Discarder::default());
        let assembled = board.assemble(resources, None, environment)?;
        assembled.devices.generation.renew(&memory)?;

        let kernel = load(source, resources, &memory, &assembled.windows, config)?;
        let vcpus = create_vcpus(&hypervisor, &memory, config, kernel.entry)?;
        let vcpus = spawn_vcpus(vcpus, &assembled.buses, environment)?;
        serve(&assembled.devices, environment)?;
        Ok(Self {
            vcpus,
            hypervisor,
            memory,
            background: Background::Zero,
            pager: None,
            devices: assembled.devices,
            config: resources.config(),
        })
    }
}

/// Puts everything into guest memory that the kernel finds there.
fn load(
    source: &BootSource,
    resources: &Resources,
    memory: &GuestMemory,
    windows: &[VirtioWindow],
    config: &MachineConfig,
) -> Result<LoadedKernel, StartError> {
    // Loading moves the file's position; a copy of the descriptor shares it, but every
    // load starts by seeking.
    let mut file = source
        .kernel
        .try_clone()
        .map_err(host("use the kernel file"))?;
    let kernel = kernel::load_kernel(memory, &mut file)?;
    let initrd = match &source.initrd {
        Some(file) => {
            let mut file = file.try_clone().map_err(host("use the initrd file"))?;
            Some(kernel::load_initrd(memory, &mut file, &kernel)?)
        }
        None => None,
    };
    let root = resources
        .drives
        .iter()
        .map(|drive| &drive.config)
        .find(|c| c.is_root_device);
    parameters::write(memory, &kernel, initrd, &source.command_line(root))?;
    acpi::write(memory, config.vcpu_count, windows)?;
    Ok(kernel)
}

fn create_vcpus(
    hypervisor: &Hypervisor,
    memory: &GuestMemory,
    config: &MachineConfig,
    entry: u64,
) -> Result<Vec<VcpuFd>, StartError> {
    let supported = hypervisor.supported_cpuid()?;
    let topology = Topology {
        vcpus: config.vcpu_count,
        smt: config.smt,
    };
    (0..config.vcpu_count)
        .map(|index| {
            let fd = hypervisor.create_vcpu(index)?;
            fd.set_cpuid2(&cpuid::for_vcpu(&supported, topology, index))
                .map_err(StartError::Cpuid)?;
            msrs::set_up_boot(&fd)?;
            registers::set_up_local_interrupts(&fd)?;
            if index == 0 {
                registers::set_up_boot(&fd, memory, entry)?;
            }
            Ok(fd)
        })
        .collect()
}

/// Gives each vCPU its thread, in which it waits to be let go.
pub(super) fn spawn_vcpus(
    vcpus: Vec<VcpuFd>,
    buses: &Buses,
    environment: &Environment<'_>,
) -> Result<Vec<Vcpu>, StartError> {
    let filter = Arc::new(environment.filters.vcpu.clone());
    (0u8..)
        .zip(vcpus)
        .map(|(index, fd)| {
            let ends = environment
                .ends
                .try_clone()
                .map_err(host("share an event"))?;
            Ok(Vcpu::spawn(index, fd, buses.clone(), ends, filter.clone())?)
        })
        .collect()
}

/// Has every device listened to: drives and the balloon by a thread each, since the host's
/// disk and its memory management may be slow, the others by the main loop.
pub(super) fn serve(
    devices: &Devices,
    environment: &mut Environment<'_>,
) -> Result<(), StartError> {
    for (index, (_, drive)) in devices.drives.iter().enumerate() {
        spawn(format!("drive{index}"), drive.clone(), environment.filters)?;
    }
    for (_, network) in &devices.networks {
        watch(environment.events, network)?;
    }
    if let Some(entropy) = &devices.entropy {
        watch(environment.events, entropy)?;
    }
    if let Some(balloon) = &devices.balloon {
        spawn("balloon".into(), balloon.clone(), environment.filters)?;
    }
    Ok(())
}

fn watch<D: VirtioDevice + 'static>(
    events: &mut EventLoop,
    device: &Arc<MmioTransport<D>>,
) -> Result<(), StartError> {
    for (descriptor, set, source) in device.event_sources() {
        let handler: Arc<dyn EventHandler> = device.clone();
        events
            .add(descriptor, set, handler, source)
            .map_err(host("listen to a device"))?;
    }
    Ok(())
}

/// Has a device listened to by a thread of its own.
fn spawn<D: VirtioDevice + 'static>(
    name: String,
    device: Arc<MmioTransport<D>>,
    filters: &Filters,
) -> Result<(), StartError> {
    let filter = filters.device.clone();
    let mut events = EventLoop::new().map_err(host("listen to a device"))?;
    watch(&mut events, &device)?;
    let run = move || {
        if let Err(error) = filter.apply() {
            log::error!("a device's thread cannot apply its seccomp filter: {error}");
            return;
        }
        // Ends with the process; waiting only fails if the descriptor is bad.
        loop {
            if let Err(error) = events.run_once() {
                log::error!("a device's thread cannot wait: {error}");
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name(name)
        .stack_size(256 << 10)
        .spawn(run)
        .map_err(host("start a device's thread"))?;
    Ok(())
}
