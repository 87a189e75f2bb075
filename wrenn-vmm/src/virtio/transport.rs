//! The memory-mapped transport, version 2 (specification 1.2, section 4.2).
//!
//! ```text
//! driver:  reset ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ queues ─▶ DRIVER_OK
//! device:  idle ────────────────────────────────────────────────────▶ active
//!            ▲                    status 0 from any state                 │
//!            └────────────────────────────────────────────────────────────┘
//! ```
//!
//! Steps out of order are ignored. If a queue turns out broken, the device stops with
//! `DEVICE_NEEDS_RESET` until the driver resets it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::devices::bus::BusDevice;
use crate::event_loop::EventHandler;
use crate::memory::GuestMemory;
use crate::sync::lock;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{QueueState, VirtQueue};
use crate::virtio::{
    Active, Cause, FEATURE_EVENT_IDX, FEATURE_VERSION_1, Progress, StopFlag, VirtioDevice,
};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"WRNN");

mod status {
    pub(super) const ACKNOWLEDGE: u32 = 1;
    pub(super) const DRIVER: u32 = 2;
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
    pub(super) const NEEDS_RESET: u32 = 64;
    pub(super) const FAILED: u32 = 128;
}

mod register {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub(super) const QUEUE_SELECT: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESCRIPTOR_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESCRIPTOR_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const CONFIGURATION_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIGURATION: u64 = 0x100;
}

/// Offset of the register whose writes notify a queue; an ioeventfd watches it.
pub const NOTIFY_OFFSET: u64 = register::QUEUE_NOTIFY;

/// The transport's state, for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Version of this structure.
    pub version: u32,
    /// The status register.
    pub status: u32,
    /// Which half of the device's features the driver reads.
    pub device_features_select: u32,
    /// Which half of its own features the driver writes.
    pub driver_features_select: u32,
    /// What the driver accepted.
    pub driver_features: u64,
    /// Which queue the queue registers mean.
    pub queue_select: u32,
    /// Counts changes of the configuration space.
    pub configuration_generation: u32,
    /// The interrupt status register.
    pub interrupt_status: u32,
    /// All queues.
    pub queues: Vec<QueueState>,
}

impl TransportState {
    const VERSION: u32 = 1;
}

struct Inner<D> {
    device: D,
    queues: Vec<VirtQueue>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    configuration_generation: u32,
    paused: bool,
}

impl<D: VirtioDevice> Inner<D> {
    fn features(&self) -> u64 {
        self.device.features() | FEATURE_VERSION_1 | FEATURE_EVENT_IDX
    }

    fn is_active(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    fn selected_queue(&mut self) -> Option<&mut VirtQueue> {
        self.queues.get_mut(self.queue_select as usize)
    }
}

/// A device behind its registers.
pub struct MmioTransport<D> {
    memory: Arc<GuestMemory>,
    interrupt: Interrupt,
    /// One for each queue, in order.
    queue_events: Vec<EventFd>,
    stop: StopFlag,
    inner: Mutex<Inner<D>>,
}

/// A device could not be put behind its transport.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No events.
    #[error("cannot create the events of a virtio device")]
    Events(#[source] std::io::Error),
    /// Queue sizes or addresses are impossible.
    #[error("virtqueue {index} is impossible")]
    Queue {
        /// Which queue.
        index: usize,
        /// In which way.
        #[source]
        source: virtio_queue::Error,
    },
    /// The snapshot has another layout of a device's registers.
    #[error(
        "the saved registers have layout {found}, this VMM knows {}",
        TransportState::VERSION
    )]
    Version {
        /// Saved.
        found: u32,
    },
    /// The driver was offered more than the device has.
    #[error("the driver uses features that this device has not: {0:#x}")]
    Features(u64),
    /// The snapshot has another number of queues than the device.
    #[error("the saved device has {found} queues, this one has {expected}")]
    QueueCount {
        /// Saved.
        found: usize,
        /// Of the device.
        expected: usize,
    },
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind fresh registers.
    ///
    /// # Errors
    /// If no events can be made.
    pub fn new(device: D, memory: Arc<GuestMemory>) -> Result<Self, TransportError> {
        let event =
            || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(TransportError::Events);
        let sizes = device.queue_sizes();
        Ok(Self {
            memory,
            interrupt: Interrupt::new(event()?),
            queue_events: sizes.iter().map(|_| event()).collect::<Result<_, _>>()?,
            stop: StopFlag::default(),
            inner: Mutex::new(Inner {
                queues: fresh_queues(sizes)?,
                device,
                status: 0,
                device_features_select: 0,
                driver_features_select: 0,
                driver_features: 0,
                queue_select: 0,
                configuration_generation: 0,
                paused: false,
            }),
        })
    }

    /// The events that notify queues, in order.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// The event that raises the interrupt line.
    pub fn interrupt_line(&self) -> &EventFd {
        self.interrupt.line()
    }

    /// What an event loop has to watch: descriptor, whether by edge, and the cause that
    /// [`EventHandler::handle`] is to be called with.
    pub fn event_sources(&self) -> Vec<(RawFd, EventSet, u32)> {
        let mut sources: Vec<_> = (0u32..)
            .zip(&self.queue_events)
            .map(|(index, event)| (event.as_raw_fd(), EventSet::IN, index))
            .collect();
        let inner = lock(&self.inner);
        // By edge: a packet that cannot be taken now must not wake the loop again and
        // again, nor must a timer that has expired.
        let by_edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if let Some(backend) = inner.device.backend() {
            sources.push((backend, by_edge, SOURCE_BACKEND));
        }
        for (timer, queue) in inner.device.timers() {
            sources.push((timer, by_edge, u32::try_from(queue).unwrap_or(u32::MAX)));
        }
        sources
    }

    /// Works with the device itself, while the guest waits.
    pub fn with_device<T>(&self, work: impl FnOnce(&mut D) -> T) -> T {
        work(&mut lock(&self.inner).device)
    }

    /// Tells the guest that the configuration space changed.
    pub fn configuration_changed(&self) {
        let mut inner = lock(&self.inner);
        inner.configuration_generation = inner.configuration_generation.wrapping_add(1);
        if inner.is_active() {
            self.interrupt.notify_configuration();
        }
    }

    fn run(&self, inner: &mut Inner<D>, cause: Cause) {
        if inner.paused || self.stop.is_set() || !inner.is_active() {
            return;
        }
        let mut active = Active {
            features: inner.driver_features,
            queues: &mut inner.queues,
            memory: &self.memory,
            interrupt: &self.interrupt,
            stop: &self.stop,
        };
        match inner.device.process(cause, &mut active) {
            Ok(Progress::Done) => {}
            // Others get their turn before the rest.
            Ok(Progress::More(queue)) => self.signal(queue),
            Err(error) => {
                log::warn!("{:?} device stopped: {error}", inner.device.device_type());
                inner.status |= status::NEEDS_RESET;
                self.interrupt.notify_configuration();
            }
        }
    }

    /// Has every queue looked at.
    pub fn wake_queues(&self) {
        for queue in 0..self.queue_events.len() {
            self.signal(queue);
        }
    }

    fn signal(&self, queue: usize) {
        if let Some(event) = self.queue_events.get(queue)
            && let Err(error) = event.write(1)
        {
            log::debug!("queue event: {error}");
        }
    }

    fn set_status(&self, inner: &mut Inner<D>, value: u32) {
        if value == 0 {
            self.reset(inner);
            return;
        }
        // Bits are set one after another, and never cleared but by a reset.
        if inner.status & !status::NEEDS_RESET & !value != 0 {
            log::debug!(
                "driver cleared status bits: {:#x} to {value:#x}",
                inner.status
            );
            return;
        }
        let added = value & !inner.status;
        let expected = status::ACKNOWLEDGE | status::DRIVER;
        match added {
            status::ACKNOWLEDGE | status::DRIVER | status::FAILED => inner.status |= added,
            status::FEATURES_OK if inner.status == expected => {
                let offered = inner.features();
                // Refused by leaving the bit unset, which the driver then reads.
                if inner.driver_features & !offered == 0
                    && inner.driver_features & FEATURE_VERSION_1 != 0
                {
                    inner.status |= status::FEATURES_OK;
                }
            }
            status::DRIVER_OK if inner.status == expected | status::FEATURES_OK => {
                self.activate(inner);
            }
            _ => log::debug!("driver status {value:#x} after {:#x}", inner.status),
        }
    }

    fn activate(&self, inner: &mut Inner<D>) {
        let event_idx = inner.driver_features & FEATURE_EVENT_IDX != 0;
        for queue in &mut inner.queues {
            queue.set_up().set_event_idx(event_idx);
        }
        inner.status |= status::DRIVER_OK;
        let needed = inner.device.queues_needed(inner.driver_features);
        let mut queues = inner.queues.iter().take(needed);
        if queues.all(|queue| queue.is_valid(&self.memory)) {
            inner.device.activate(inner.driver_features);
        } else {
            log::warn!(
                "{:?} device: driver left a queue invalid",
                inner.device.device_type()
            );
            inner.status |= status::NEEDS_RESET;
            self.interrupt.notify_configuration();
        }
    }

    fn reset(&self, inner: &mut Inner<D>) {
        if inner.status != 0 {
            inner.device.reset();
        }
        for queue in &mut inner.queues {
            queue.reset();
        }
        inner.status = 0;
        inner.device_features_select = 0;
        inner.driver_features_select = 0;
        inner.driver_features = 0;
        inner.queue_select = 0;
        self.interrupt.set_status(0);
    }

    fn read_register(&self, offset: u64) -> u32 {
        if offset == register::INTERRUPT_STATUS {
            return self.interrupt.status();
        }
        let mut inner = lock(&self.inner);
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => inner.device.device_type() as u32,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => match inner.device_features_select {
                0 => low_half(inner.features()),
                1 => low_half(inner.features() >> 32),
                _ => 0,
            },
            register::QUEUE_SIZE_MAX => inner
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.inner().max_size())),
            register::QUEUE_READY => inner
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.is_ready())),
            register::STATUS => inner.status,
            register::CONFIGURATION_GENERATION => inner.configuration_generation,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == register::INTERRUPT_ACKNOWLEDGE {
            self.interrupt.acknowledge(value);
            return;
        }
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        match offset {
            register::STATUS => self.set_status(inner, value),
            register::DEVICE_FEATURES_SELECT => inner.device_features_select = value,
            register::DRIVER_FEATURES_SELECT => inner.driver_features_select = value,
            register::DRIVER_FEATURES if inner.status & status::FEATURES_OK == 0 => {
                let half = u64::from(value);
                let kept = inner.driver_features;
                inner.driver_features = match inner.driver_features_select {
                    0 => (kept & !u64::from(u32::MAX)) | half,
                    1 => (kept & u64::from(u32::MAX)) | (half << 32),
                    _ => kept,
                };
            }
            register::QUEUE_SELECT => inner.queue_select = value,
            // Without an ioeventfd, or on one that KVM could not take, it comes here.
            register::QUEUE_NOTIFY => self.signal(value as usize),
            _ => Self::write_queue_register(inner, offset, value),
        }
    }

    fn write_queue_register(inner: &mut Inner<D>, offset: u64, value: u32) {
        // Queues are set up between FEATURES_OK and DRIVER_OK and fixed after.
        if inner.status & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return;
        }
        let Some(queue) = inner.selected_queue() else {
            return;
        };
        let queue = queue.set_up();
        match offset {
            register::QUEUE_SIZE => {
                // A size that does not fit 16 bits is no power of two in range either way.
                queue.set_size(u16::try_from(value).unwrap_or(0));
            }
            register::QUEUE_READY => queue.set_ready(value == 1),
            register::QUEUE_DESCRIPTOR_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESCRIPTOR_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// The transport's state. The device should be paused.
    pub fn state(&self) -> TransportState {
        let inner = lock(&self.inner);
        TransportState {
            version: TransportState::VERSION,
            status: inner.status,
            device_features_select: inner.device_features_select,
            driver_features_select: inner.driver_features_select,
            driver_features: inner.driver_features,
            queue_select: inner.queue_select,
            configuration_generation: inner.configuration_generation,
            interrupt_status: self.interrupt.status(),
            queues: inner.queues.iter().map(VirtQueue::state).collect(),
        }
    }

    /// Puts saved state into fresh registers; the device comes up paused.
    ///
    /// # Errors
    /// If the state does not fit the device.
    pub fn restore(&self, state: &TransportState) -> Result<(), TransportError> {
        let mut inner = lock(&self.inner);
        if state.version != TransportState::VERSION {
            return Err(TransportError::Version {
                found: state.version,
            });
        }
        let lacking = state.driver_features & !inner.features();
        // Before, a driver may have written anything.
        if state.status & status::FEATURES_OK != 0 && lacking != 0 {
            return Err(TransportError::Features(lacking));
        }
        if state.queues.len() != inner.queues.len() {
            return Err(TransportError::QueueCount {
                found: state.queues.len(),
                expected: inner.queues.len(),
            });
        }
        inner.queues = state
            .queues
            .iter()
            .enumerate()
            .map(|(index, queue)| {
                VirtQueue::restore(index, *queue)
                    .map_err(|source| TransportError::Queue { index, source })
            })
            .collect::<Result<_, _>>()?;
        inner.status = state.status;
        inner.device_features_select = state.device_features_select;
        inner.driver_features_select = state.driver_features_select;
        inner.driver_features = state.driver_features;
        inner.queue_select = state.queue_select;
        inner.configuration_generation = state.configuration_generation;
        inner.paused = true;
        self.interrupt.set_status(state.interrupt_status);
        if inner.is_active() {
            let features = inner.driver_features;
            inner.device.activate(features);
        }
        Ok(())
    }
}

/// A device that can be stopped between two requests.
pub trait Pausable: Send + Sync {
    /// Has the device put back what it works on, and begin nothing. Takes no lock, so that it
    /// does not wait for the device either.
    fn stop(&self);

    /// Returns once no request is being worked on; none is started after.
    fn pause(&self);

    /// Goes on, looking at everything that came meanwhile.
    fn resume(&self);
}

impl<D: VirtioDevice> Pausable for MmioTransport<D> {
    fn stop(&self) {
        self.stop.set(true);
    }

    fn pause(&self) {
        self.stop();
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        inner.paused = true;
        inner.device.pause(&mut inner.queues);
    }

    fn resume(&self) {
        lock(&self.inner).paused = false;
        self.stop.set(false);
        // Whatever came meanwhile was ignored.
        self.wake_queues();
        // An interrupt that was raised on its way into a snapshot may have been lost.
        if self.interrupt.status() != 0 {
            self.interrupt.pulse();
        }
    }
}

const SOURCE_BACKEND: u32 = u32::MAX;

impl<D: VirtioDevice> EventHandler for MmioTransport<D> {
    fn handle(&self, source: u32, _events: EventSet) {
        let cause = if source == SOURCE_BACKEND {
            Cause::Backend
        } else {
            let index = source as usize;
            if let Some(event) = self.queue_events.get(index) {
                // Not readable means that another wake-up took it along.
                event.read().ok();
            }
            Cause::Queue(index)
        };
        self.run(&mut lock(&self.inner), cause);
    }
}

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIGURATION {
            let inner = lock(&self.inner);
            let start = crate::memory::host_length(offset - register::CONFIGURATION);
            let configuration = inner.device.configuration();
            data.fill(0);
            for (byte, value) in data.iter_mut().zip(configuration.iter().skip(start)) {
                *byte = *value;
            }
        } else if data.len() == 4 {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // No device here has a configuration that the driver may write.
        if offset < register::CONFIGURATION
            && let Ok(bytes) = data.try_into()
        {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

fn fresh_queues(sizes: &[u16]) -> Result<Vec<VirtQueue>, TransportError> {
    sizes
        .iter()
        .enumerate()
        .map(|(index, size)| {
            VirtQueue::new(index, *size).map_err(|source| TransportError::Queue { index, source })
        })
        .collect()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "taking a half is the point"
)]
const fn low_half(value: u64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests;
