//! Makes a machine out of resources and starts it.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::boot::acpi::{self, AcpiError, VirtioWindow};
use crate::boot::kernel::{self, LoadError};
use crate::boot::parameters::{self, ParametersError};
use crate::config::MachineConfig;
use crate::cpu::cpuid::{self, Topology};
use crate::cpu::msrs::{self, MsrsError};
use crate::cpu::registers::{self, RegistersError};
use crate::cpu::thread::{Buses, EndEvents, Vcpu, VcpuError};
use crate::devices::bus::{Bus, BusDevice, RangeTaken};
use crate::devices::console::ConsoleInput;
use crate::devices::keyboard::{KeyboardController, KeyboardState};
use crate::devices::power::SleepRegisters;
use crate::devices::serial::{Line, SerialPort};
use crate::devices::vm_generation::{GenerationError, VmGeneration};
use crate::event_loop::{EventHandler, EventLoop};
use crate::layout;
use crate::machine::hypervisor::{Hypervisor, HypervisorError};
use crate::machine::{BootSource, Devices, Machine, Resources};
use crate::memory::{self, GuestMemory, MemoryError};
use crate::seccomp::{Filter, Filters};
use crate::virtio::VirtioDevice;
use crate::virtio::block::Block;
use crate::virtio::net::Net;
use crate::virtio::rng::Entropy;
use crate::virtio::transport::{MmioTransport, NOTIFY_OFFSET, TransportError};

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

const fn host(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Host { what, source }
}

fn event() -> Result<EventFd, StartError> {
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

        let mut board = Board::new(&hypervisor, &memory);
        let devices = board.attach_all(resources, environment)?;
        devices.generation.renew(&memory)?;
        let Board {
            ports,
            windows_bus,
            windows,
            ..
        } = board;
        let buses = Buses {
            ports: Arc::new(ports),
            memory: Arc::new(windows_bus),
        };

        let entry = load(source, resources, &memory, &windows, config)?;
        let vcpus = create_vcpus(&hypervisor, &memory, config, entry, &buses, environment)?;
        serve(&devices, environment)?;
        Ok(Self {
            vcpus,
            hypervisor,
            memory,
            devices,
            config: resources.config(),
        })
    }
}

/// Puts everything into guest memory that the kernel finds there, and says where it is
/// entered.
fn load(
    source: &BootSource,
    resources: &Resources,
    memory: &GuestMemory,
    windows: &[VirtioWindow],
    config: &MachineConfig,
) -> Result<u64, StartError> {
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
    Ok(kernel.entry)
}

fn create_vcpus(
    hypervisor: &Hypervisor,
    memory: &GuestMemory,
    config: &MachineConfig,
    entry: u64,
    buses: &Buses,
    environment: &Environment<'_>,
) -> Result<Vec<Vcpu>, StartError> {
    let supported = hypervisor.supported_cpuid()?;
    let topology = Topology {
        vcpus: config.vcpu_count,
        smt: config.smt,
    };
    let filter = Arc::new(environment.filters.vcpu.clone());
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
            let ends = environment
                .ends
                .try_clone()
                .map_err(host("share an event"))?;
            Ok(Vcpu::spawn(index, fd, buses.clone(), ends, filter.clone())?)
        })
        .collect()
}

/// Where devices are plugged in.
struct Board<'a> {
    hypervisor: &'a Hypervisor,
    memory: &'a Arc<GuestMemory>,
    ports: Bus,
    windows_bus: Bus,
    windows: Vec<VirtioWindow>,
}

impl<'a> Board<'a> {
    fn new(hypervisor: &'a Hypervisor, memory: &'a Arc<GuestMemory>) -> Self {
        Self {
            hypervisor,
            memory,
            ports: Bus::default(),
            windows_bus: Bus::default(),
            windows: Vec::new(),
        }
    }

    fn attach_all(
        &mut self,
        resources: &Resources,
        environment: &Environment<'_>,
    ) -> Result<Devices, StartError> {
        let count = resources.drives.len()
            + resources.networks.len()
            + usize::from(resources.entropy.is_some());
        let most = (layout::VIRTIO_INTERRUPT_LAST - layout::VIRTIO_INTERRUPT_FIRST + 1) as usize;
        if count > most {
            return Err(StartError::TooManyDevices(count));
        }

        let serial = self.serial(environment)?;
        let keyboard = self.keyboard(environment)?;
        let power_off = environment
            .ends
            .finished
            .try_clone()
            .map_err(host("share an event"))?;
        self.ports.insert(
            u64::from(layout::SLEEP_CONTROL_PORT),
            2,
            Arc::new(SleepRegisters::new(power_off)),
        )?;
        let interrupt = self.line(layout::VM_GENERATION_INTERRUPT)?;
        let generation = Arc::new(VmGeneration::new(interrupt));

        let mut drives = Vec::with_capacity(resources.drives.len());
        for drive in &resources.drives {
            let backing = drive
                .backing
                .try_clone()
                .map_err(host("use a drive's file"))?;
            let config = &drive.config;
            let read_only = config.is_read_only.unwrap_or(false);
            let device = Block::new(backing, &config.drive_id, read_only, config.cache_type);
            drives.push((config.drive_id.clone(), self.virtio(device)?));
        }
        let mut networks = Vec::with_capacity(resources.networks.len());
        for network in &resources.networks {
            let tap = network
                .tap
                .try_clone()
                .map_err(host("use a TAP interface"))?;
            let config = &network.config;
            let device = Net::new(tap, config.guest_mac, config.mtu);
            networks.push((config.iface_id.clone(), self.virtio(device)?));
        }
        let entropy = match resources.entropy {
            Some(_) => Some(self.virtio(Entropy)?),
            None => None,
        };
        Ok(Devices {
            drives,
            networks,
            entropy,
            keyboard,
            serial,
            generation,
        })
    }

    /// An event that raises an interrupt line.
    fn line(&self, number: u32) -> Result<EventFd, StartError> {
        let event = event()?;
        self.hypervisor.connect_interrupt(&event, number)?;
        Ok(event)
    }

    fn serial(&mut self, environment: &Environment<'_>) -> Result<Arc<SerialPort>, StartError> {
        let line = Line(self.line(layout::SERIAL_INTERRUPT)?);
        let wanted = environment
            .input_wanted
            .try_clone()
            .map_err(host("share an event"))?;
        let serial = Arc::new(SerialPort::new(line, environment.console.clone(), wanted));
        self.ports.insert(
            u64::from(layout::SERIAL_PORT_START),
            u64::from(layout::SERIAL_PORT_COUNT),
            serial.clone(),
        )?;
        Ok(serial)
    }

    fn keyboard(
        &mut self,
        environment: &Environment<'_>,
    ) -> Result<Arc<KeyboardController>, StartError> {
        let reset = environment
            .ends
            .finished
            .try_clone()
            .map_err(host("share an event"))?;
        let keyboard = Arc::new(KeyboardController::new(
            KeyboardState::default(),
            self.line(layout::KEYBOARD_INTERRUPT)?,
            reset,
        ));
        self.ports.insert(
            u64::from(layout::KEYBOARD_PORT_START),
            u64::from(layout::KEYBOARD_PORT_COUNT),
            keyboard.clone(),
        )?;
        Ok(keyboard)
    }

    /// Gives a virtio device the next window and interrupt line.
    fn virtio<D: VirtioDevice + 'static>(
        &mut self,
        device: D,
    ) -> Result<Arc<MmioTransport<D>>, StartError> {
        let index = self.windows.len() as u64;
        let start = layout::VIRTIO_WINDOWS_START + index * layout::VIRTIO_WINDOW_SIZE;
        let interrupt = layout::VIRTIO_INTERRUPT_FIRST
            + u32::try_from(index).map_err(|_| StartError::TooManyDevices(self.windows.len()))?;
        let transport = Arc::new(MmioTransport::new(device, self.memory.clone())?);
        self.hypervisor
            .connect_interrupt(transport.interrupt_line(), interrupt)?;
        for (number, event) in (0u32..).zip(transport.queue_events()) {
            self.hypervisor
                .connect_notification(event, start + NOTIFY_OFFSET, number)?;
        }
        let on_bus: Arc<dyn BusDevice> = transport.clone();
        self.windows_bus
            .insert(start, layout::VIRTIO_WINDOW_SIZE, on_bus)?;
        self.windows.push(VirtioWindow { start, interrupt });
        Ok(transport)
    }
}

/// Has every device listened to: drives by a thread each, the others by the main loop.
fn serve(devices: &Devices, environment: &mut Environment<'_>) -> Result<(), StartError> {
    for (index, (_, drive)) in devices.drives.iter().enumerate() {
        spawn_drive(index, drive.clone(), environment.filters.drive.clone())?;
    }
    for (_, network) in &devices.networks {
        watch(environment.events, network)?;
    }
    if let Some(entropy) = &devices.entropy {
        watch(environment.events, entropy)?;
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

fn spawn_drive(
    index: usize,
    drive: Arc<MmioTransport<Block>>,
    filter: Filter,
) -> Result<(), StartError> {
    let mut events = EventLoop::new().map_err(host("listen to a drive"))?;
    watch(&mut events, &drive)?;
    let run = move || {
        if let Err(error) = filter.apply() {
            log::error!("a drive's thread cannot apply its seccomp filter: {error}");
            return;
        }
        // Ends with the process; waiting only fails if the descriptor is bad.
        loop {
            if let Err(error) = events.run_once() {
                log::error!("a drive's thread cannot wait: {error}");
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name(format!("drive{index}"))
        .stack_size(256 << 10)
        .spawn(run)
        .map_err(host("start a drive's thread"))?;
    Ok(())
}
