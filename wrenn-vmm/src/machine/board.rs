//! Where devices are plugged in: each gets its addresses and its interrupt line, in an
//! order that a snapshot relies on.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::boot::acpi::VirtioWindow;
use crate::config::RateLimiterConfig;
use crate::cpu::thread::Buses;
use crate::devices::bus::{Bus, BusDevice};
use crate::devices::keyboard::{KeyboardController, KeyboardState};
use crate::devices::power::SleepRegisters;
use crate::devices::serial::{Line, SerialPort, SerialState};
use crate::devices::vm_generation::VmGeneration;
use crate::layout;
use crate::machine::build::{Environment, StartError, event, host};
use crate::machine::hypervisor::Hypervisor;
use crate::machine::{Devices, Resources};
use crate::memory::GuestMemory;
use crate::memory::discard::Discarder;
use crate::rate_limiter::{MonotonicClock, RateLimiter};
use crate::snapshot::state::DeviceStates;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::net::{Limiters, Net};
use crate::virtio::rng::Entropy;
use crate::virtio::transport::{MmioTransport, NOTIFY_OFFSET, TransportState};

/// Where devices are plugged in.
pub(super) struct Board<'a> {
    hypervisor: &'a Hypervisor,
    memory: &'a Arc<GuestMemory>,
    discarder: Discarder,
    ports: Bus,
    windows_bus: Bus,
    windows: Vec<VirtioWindow>,
}

/// A machine's devices, plugged in.
pub(super) struct Assembled {
    /// By name.
    pub(super) devices: Devices,
    /// By address.
    pub(super) buses: Buses,
    /// For the tables that describe them.
    pub(super) windows: Vec<VirtioWindow>,
}

impl<'a> Board<'a> {
    /// An empty board. What the guest reports as free is given back by `discarder`.
    pub(super) fn new(
        hypervisor: &'a Hypervisor,
        memory: &'a Arc<GuestMemory>,
        discarder: Discarder,
    ) -> Self {
        Self {
            hypervisor,
            memory,
            discarder,
            ports: Bus::default(),
            windows_bus: Bus::default(),
            windows: Vec::new(),
        }
    }

    /// Plugs in everything that `resources` ask for: fresh, or as it was when `saved`.
    /// Virtio devices come up paused in that case.
    pub(super) fn assemble(
        mut self,
        resources: &Resources,
        saved: Option<&DeviceStates>,
        environment: &Environment<'_>,
    ) -> Result<Assembled, StartError> {
        let count = resources.drives.len()
            + resources.networks.len()
            + usize::from(resources.entropy.is_some())
            + usize::from(resources.balloon.is_some());
        let most = (layout::VIRTIO_INTERRUPT_LAST - layout::VIRTIO_INTERRUPT_FIRST + 1) as usize;
        if count > most {
            return Err(StartError::TooManyDevices(count));
        }

        let serial = self.serial(saved.map(|saved| &saved.serial), environment)?;
        let keyboard = self.keyboard(saved.map(|saved| &saved.keyboard), environment)?;
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
        for (index, drive) in resources.drives.iter().enumerate() {
            let backing = drive
                .backing
                .try_clone()
                .map_err(host("use a drive's file"))?;
            let config = &drive.config;
            let read_only = config.is_read_only.unwrap_or(false);
            let device = Block::new(
                backing,
                &config.drive_id,
                read_only,
                config.cache_type,
                limiter(config.rate_limiter)?,
            );
            let saved = saved.and_then(|saved| saved.drives.get(index));
            drives.push((config.drive_id.clone(), self.virtio(device, saved)?));
        }
        let mut networks = Vec::with_capacity(resources.networks.len());
        for (index, network) in resources.networks.iter().enumerate() {
            let tap = network
                .tap
                .try_clone()
                .map_err(host("use a TAP interface"))?;
            let config = &network.config;
            let limiters = Limiters {
                receive: limiter(config.rx_rate_limiter)?,
                transmit: limiter(config.tx_rate_limiter)?,
            };
            let device = Net::new(tap, config.guest_mac, config.mtu, limiters);
            let saved = saved.and_then(|saved| saved.networks.get(index));
            networks.push((config.iface_id.clone(), self.virtio(device, saved)?));
        }
        let entropy = match resources.entropy {
            Some(_) => {
                let saved = saved.and_then(|saved| saved.entropy.as_ref());
                Some(self.virtio(Entropy, saved)?)
            }
            None => None,
        };
        let balloon = match &resources.balloon {
            Some(config) => {
                let discarder = std::mem::take(&mut self.discarder);
                let device = Balloon::new(config, discarder);
                let saved = saved.and_then(|saved| saved.balloon.as_ref());
                Some(self.virtio(device, saved)?)
            }
            None => None,
        };
        Ok(Assembled {
            devices: Devices {
                drives,
                networks,
                entropy,
                balloon,
                keyboard,
                serial,
                generation,
            },
            buses: Buses {
                ports: Arc::new(self.ports),
                memory: Arc::new(self.windows_bus),
            },
            windows: self.windows,
        })
    }

    /// An event that raises an interrupt line.
    fn line(&self, number: u32) -> Result<EventFd, StartError> {
        let event = event()?;
        self.hypervisor.connect_interrupt(&event, number)?;
        Ok(event)
    }

    fn serial(
        &mut self,
        saved: Option<&SerialState>,
        environment: &Environment<'_>,
    ) -> Result<Arc<SerialPort>, StartError> {
        let line = Line(self.line(layout::SERIAL_INTERRUPT)?);
        let wanted = environment
            .input_wanted
            .try_clone()
            .map_err(host("share an event"))?;
        let console = environment.console.clone();
        let serial = Arc::new(match saved {
            Some(state) => SerialPort::restore(state.clone(), line, console, wanted)
                .map_err(StartError::Serial)?,
            None => SerialPort::new(line, console, wanted),
        });
        self.ports.insert(
            u64::from(layout::SERIAL_PORT_START),
            u64::from(layout::SERIAL_PORT_COUNT),
            serial.clone(),
        )?;
        Ok(serial)
    }

    fn keyboard(
        &mut self,
        saved: Option<&KeyboardState>,
        environment: &Environment<'_>,
    ) -> Result<Arc<KeyboardController>, StartError> {
        let reset = environment
            .ends
            .finished
            .try_clone()
            .map_err(host("share an event"))?;
        let keyboard = Arc::new(KeyboardController::new(
            saved.cloned().unwrap_or_default(),
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
        saved: Option<&TransportState>,
    ) -> Result<Arc<MmioTransport<D>>, StartError> {
        let index = self.windows.len() as u64;
        let start = layout::VIRTIO_WINDOWS_START + index * layout::VIRTIO_WINDOW_SIZE;
        let interrupt = layout::VIRTIO_INTERRUPT_FIRST
            + u32::try_from(index).map_err(|_| StartError::TooManyDevices(self.windows.len()))?;
        let transport = Arc::new(MmioTransport::new(device, self.memory.clone())?);
        if let Some(saved) = saved {
            transport.restore(saved)?;
        }
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

fn limiter(config: Option<RateLimiterConfig>) -> Result<RateLimiter, StartError> {
    RateLimiter::new(config, MonotonicClock).map_err(host("create a timer"))
}
