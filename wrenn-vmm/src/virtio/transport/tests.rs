use std::sync::Barrier;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{HugePages, allocate};
use crate::virtio::{DeviceType, QueueBroken};

const FEATURE_OWN: u64 = 1 << 3;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// Counts what it is told, and consumes every buffer.
#[derive(Default)]
struct Fake {
    activated_with: Option<u64>,
    resets: u32,
    processed: u32,
    /// Met by a device that is busy until it is stopped.
    busy: Option<Arc<Barrier>>,
}

impl VirtioDevice for Fake {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16]
    }

    fn features(&self) -> u64 {
        FEATURE_OWN
    }

    fn configuration(&self) -> &[u8] {
        &[1, 2, 3]
    }

    fn activate(&mut self, features: u64) {
        self.activated_with = Some(features);
    }

    fn reset(&mut self) {
        self.resets += 1;
        self.activated_with = None;
    }

    fn process(&mut self, _: Cause, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        self.processed += 1;
        if let Some(busy) = &self.busy {
            busy.wait();
            while !active.stop.is_set() {
                std::thread::yield_now();
            }
            return Ok(Progress::Done);
        }
        while let Some(chain) = active.queues[0].pop(active.memory)? {
            active.queues[0].add_used(active.memory, chain.head, 0)?;
        }
        active.queues[0].notify(active.memory, active.interrupt)?;
        Ok(Progress::Done)
    }
}

struct Driver {
    memory: Arc<GuestMemory>,
    transport: MmioTransport<Fake>,
}

impl Driver {
    fn new() -> Self {
        let memory = Arc::new(allocate(1, HugePages::None, false).unwrap());
        let transport = MmioTransport::new(Fake::default(), memory.clone()).unwrap();
        Self { memory, transport }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        BusDevice::read(&self.transport, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        BusDevice::write(&self.transport, offset, &value.to_le_bytes());
    }

    fn negotiate(&self, features: u64) {
        self.write(register::STATUS, 0);
        self.write(register::STATUS, status::ACKNOWLEDGE);
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for half in 0..2 {
            self.write(register::DRIVER_FEATURES_SELECT, half);
            self.write(register::DRIVER_FEATURES, low_half(features >> (32 * half)));
        }
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(register::STATUS, all);
    }

    fn set_up_queue(&self, used: u64) {
        self.write(register::QUEUE_SELECT, 0);
        self.write(register::QUEUE_SIZE, 16);
        self.write(register::QUEUE_DESCRIPTOR_LOW, low_half(DESCRIPTORS));
        self.write(register::QUEUE_DRIVER_LOW, low_half(AVAILABLE));
        self.write(register::QUEUE_DEVICE_LOW, low_half(used));
        self.write(register::QUEUE_READY, 1);
    }

    fn start(&self) {
        self.negotiate(FEATURE_VERSION_1 | FEATURE_OWN);
        self.set_up_queue(USED);
        self.write(
            register::STATUS,
            self.read(register::STATUS) | status::DRIVER_OK,
        );
    }

    /// Makes one (empty) buffer available and notifies.
    fn offer(&self, head: u16) {
        let index: u16 = self.memory.read_obj(GuestAddress(AVAILABLE + 2)).unwrap();
        let slot = AVAILABLE + 4 + 2 * u64::from(index % 16);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.memory
            .store(
                index.wrapping_add(1),
                GuestAddress(AVAILABLE + 2),
                Ordering::Release,
            )
            .unwrap();
        self.write(register::QUEUE_NOTIFY, 0);
    }

    /// What the event loop would do, if the queue's event is raised.
    fn serve(&self) -> bool {
        let raised = self.transport.queue_events()[0].read().is_ok();
        if raised {
            self.transport.handle(0, EventSet::IN);
        }
        raised
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    fn device<T>(&self, look: impl FnOnce(&mut Fake) -> T) -> T {
        self.transport.with_device(look)
    }
}

#[test]
fn registers_say_what_is_here() {
    let driver = Driver::new();
    assert_eq!(driver.read(register::MAGIC), 0x7472_6976);
    assert_eq!(driver.read(register::VERSION), 2);
    assert_eq!(driver.read(register::DEVICE_ID), 4);
    assert_eq!(driver.read(register::QUEUE_SIZE_MAX), 16);
    driver.write(register::QUEUE_SELECT, 1);
    assert_eq!(driver.read(register::QUEUE_SIZE_MAX), 0);
    let features = |select| {
        driver.write(register::DEVICE_FEATURES_SELECT, select);
        driver.read(register::DEVICE_FEATURES)
    };
    assert_eq!(features(0), low_half(FEATURE_OWN | FEATURE_EVENT_IDX));
    assert_eq!((features(1), features(2)), (1, 0));
}

#[test]
fn configuration_reads_are_cut_at_its_end() {
    let driver = Driver::new();
    let read = |offset: u64, length: usize| {
        let mut data = vec![0xff; length];
        BusDevice::read(&driver.transport, offset, &mut data);
        data
    };
    assert_eq!(read(0x100, 4), [1, 2, 3, 0]);
    assert_eq!(read(0x102, 1), [3]);
    assert_eq!(read(0xfff, 8), [0; 8]);
}

#[test]
fn driver_starts_device_and_gets_its_buffers_back() {
    let driver = Driver::new();
    driver.start();
    let agreed = FEATURE_VERSION_1 | FEATURE_OWN;
    assert_eq!(driver.device(|device| device.activated_with), Some(agreed));
    driver.offer(3);
    assert!(driver.serve());
    assert_eq!(driver.used(), 1);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 1);
    driver.write(register::INTERRUPT_ACKNOWLEDGE, 1);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
}

#[test]
fn features_that_were_not_offered_or_are_missing_are_refused() {
    for features in [FEATURE_VERSION_1 | 1, FEATURE_OWN, 0] {
        let driver = Driver::new();
        driver.negotiate(features);
        assert_eq!(
            driver.read(register::STATUS) & status::FEATURES_OK,
            0,
            "{features:#x}"
        );
        driver.set_up_queue(USED);
        driver.write(register::STATUS, 0xf);
        assert_eq!(driver.device(|device| device.activated_with), None);
    }
}

#[test]
fn steps_out_of_order_are_ignored() {
    let driver = Driver::new();
    driver.write(register::STATUS, 0xf);
    driver.write(register::STATUS, status::DRIVER_OK);
    assert_eq!(driver.read(register::STATUS), 0);
    driver.set_up_queue(USED);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    driver.start();
    // Fixed once the device runs.
    driver.write(register::QUEUE_DEVICE_LOW, 0x5000);
    driver.write(register::QUEUE_READY, 0);
    assert_eq!(driver.read(register::QUEUE_READY), 1);
    driver.write(register::STATUS, status::ACKNOWLEDGE);
    assert_eq!(driver.read(register::STATUS), 0xf);
}

#[test]
fn queue_outside_of_memory_stops_the_device_until_it_is_reset() {
    let driver = Driver::new();
    driver.negotiate(FEATURE_VERSION_1);
    driver.set_up_queue(0x7fff_0000);
    driver.write(register::STATUS, 0xf);
    assert_ne!(driver.read(register::STATUS) & status::NEEDS_RESET, 0);
    assert_eq!(driver.device(|device| device.activated_with), None);
    driver.start();
    assert_eq!(driver.read(register::STATUS), 0xf);
    assert!(driver.device(|device| device.activated_with.is_some()));
}

#[test]
fn broken_ring_stops_the_device_and_reset_revives_it() {
    let driver = Driver::new();
    driver.start();
    driver.offer(999);
    driver.serve();
    assert_ne!(driver.read(register::STATUS) & status::NEEDS_RESET, 0);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 2);
    driver.offer(1);
    driver.serve();
    assert_eq!(driver.used(), 0);

    driver
        .memory
        .write_obj(0u32, GuestAddress(AVAILABLE))
        .unwrap();
    driver.start();
    assert_eq!(driver.device(|device| device.resets), 1);
    driver.offer(1);
    driver.serve();
    assert_eq!(driver.used(), 1);
}

#[test]
fn paused_device_does_nothing_and_catches_up() {
    let driver = Driver::new();
    driver.start();
    driver.transport.pause();
    driver.offer(2);
    assert!(driver.serve());
    assert_eq!(
        (driver.used(), driver.device(|device| device.processed)),
        (0, 0)
    );
    driver.transport.resume();
    assert!(driver.serve());
    assert_eq!(driver.used(), 1);
}

#[test]
fn saved_state_goes_on_in_another_transport() {
    let driver = Driver::new();
    driver.start();
    driver.offer(2);
    driver.serve();
    driver.transport.pause();
    driver.offer(3);
    let text = serde_json::to_string(&driver.transport.state()).unwrap();

    let transport = MmioTransport::new(Fake::default(), driver.memory.clone()).unwrap();
    transport
        .restore(&serde_json::from_str(&text).unwrap())
        .unwrap();
    let restored = Driver {
        memory: driver.memory.clone(),
        transport,
    };
    assert_eq!(restored.transport.state(), driver.transport.state());
    assert!(restored.device(|device| device.activated_with.is_some()));
    restored.transport.resume();
    assert!(restored.serve());
    assert_eq!(restored.used(), 2);
    // The interrupt that the guest had not acknowledged comes again.
    assert!(restored.transport.interrupt_line().read().is_ok());
}

#[test]
fn state_of_another_device_is_refused() {
    let driver = Driver::new();
    driver.start();
    driver.transport.pause();
    let saved = driver.transport.state();
    let restore = |state: &TransportState| {
        let transport = MmioTransport::new(Fake::default(), driver.memory.clone()).unwrap();
        transport.restore(state).map_err(|error| error.to_string())
    };
    restore(&saved).unwrap();
    let mut later = saved.clone();
    later.version += 1;
    assert!(restore(&later).unwrap_err().contains("layout 2"));
    let mut other = saved.clone();
    other.driver_features |= 1 << 40;
    assert!(restore(&other).unwrap_err().contains("0x10000000000"));
    let mut fewer = saved;
    fewer.queues.pop();
    assert!(restore(&fewer).unwrap_err().contains("queues"));
}

#[test]
fn pause_does_not_wait_for_busy_device() {
    let driver = Driver::new();
    driver.start();
    let busy = Arc::new(Barrier::new(2));
    driver
        .transport
        .with_device(|device| device.busy = Some(busy.clone()));
    driver.offer(2);
    std::thread::scope(|scope| {
        scope.spawn(|| driver.serve());
        busy.wait();
        // The device holds its lock, and lets go of it when it is told.
        driver.transport.stop();
        driver.transport.pause();
    });
    assert_eq!(driver.used(), 0);
    driver.transport.with_device(|device| device.busy = None);
    driver.transport.resume();
    assert!(driver.serve());
    assert_eq!(driver.used(), 1);
}
