//! A drive whose rate limiter does not admit everything at once.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::event_loop::{EventHandler, EventLoop};
use crate::memory::{HugePages, allocate};
use crate::rate_limiter::{Clock, ManualClock, MonotonicClock};
use crate::virtio::FEATURE_VERSION_1;
use crate::virtio::test_queue::{NEXT, RawDescriptor, TestDriver, WRITE};
use crate::virtio::transport::{MmioTransport, Pausable};

const RINGS: u64 = 0x1_0000;
const HEADERS: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const STATUS: u64 = 0x4_0000;
/// ACKNOWLEDGE, DRIVER, DRIVER_OK and FEATURES_OK.
const STARTED: u32 = 0xf;
const REQUESTS: u16 = 4;
const SECOND: Duration = Duration::from_secs(1);
/// Two requests of one sector each second.
const LIMITS: &str = r#"{"bandwidth": {"size": 1024, "refill_time": 1000}}"#;

/// A started drive with four requests in its queue, each of which reads the sector of its
/// number.
struct Fixture {
    memory: Arc<GuestMemory>,
    transport: Arc<MmioTransport<Block>>,
    clock: ManualClock,
}

fn config(json: &str) -> crate::config::RateLimiterConfig {
    serde_json::from_str(json).unwrap()
}

fn block(limits: &str, clock: impl Clock + 'static) -> Block {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for sector in 0..REQUESTS {
        let content = [u8::try_from(sector + 1).unwrap(); 512];
        file.write_all(&content).unwrap();
    }
    let backing = Backing::open(file.path(), true).unwrap();
    let limiter = RateLimiter::new(Some(config(limits)), clock).unwrap();
    Block::new(backing, "root", true, CacheType::Unsafe, limiter)
}

impl Fixture {
    fn new(limits: &str) -> Self {
        let clock = ManualClock::new();
        let device = block(limits, clock.clone());
        Self::on(device, clock)
    }

    fn on(device: Block, clock: ManualClock) -> Self {
        let memory = Arc::new(allocate(1, HugePages::None, false).unwrap());
        let transport = MmioTransport::new(device, memory.clone()).unwrap();
        let mut driver = TestDriver::new(&memory, RINGS);
        let mut descriptors = Vec::new();
        for request in 0..REQUESTS {
            let place = |start: u64, length: u64| start + u64::from(request) * length;
            let sector = u64::from(request);
            memory
                .write_obj(sector, GuestAddress(place(HEADERS, 16) + 8))
                .unwrap();
            let parts = [
                (place(HEADERS, 16), 16, NEXT),
                (place(DATA, 512), 512, NEXT | WRITE),
                (place(STATUS, 1), 1, WRITE),
            ];
            for (address, length, flags) in parts {
                let next = u16::try_from(descriptors.len()).unwrap() + 1;
                descriptors.push(RawDescriptor {
                    address,
                    length,
                    flags,
                    next,
                });
            }
        }
        driver.write_descriptors(&descriptors);
        let mut state = transport.state();
        state.status = STARTED;
        state.driver_features = FEATURE_VERSION_1;
        state.queues = vec![driver.queue(0).state()];
        for request in 0..REQUESTS {
            driver.publish(3 * request);
        }
        transport.restore(&state).unwrap();
        transport.resume();
        Self {
            memory,
            transport: Arc::new(transport),
            clock,
        }
    }

    /// The same guest behind another device, as after a load.
    fn reload(self, limits: &str) -> Self {
        let state = self.transport.state();
        let device = block(limits, self.clock.clone());
        let transport = MmioTransport::new(device, self.memory.clone()).unwrap();
        transport.restore(&state).unwrap();
        let transport = Arc::new(transport);
        Self { transport, ..self }
    }

    /// Has everything done that the queue's event or the timer brings about.
    fn serve(&self) {
        self.transport.handle(0, EventSet::IN);
    }

    /// The heads of the requests that are done, whose data has to be there.
    fn done(&self) -> Vec<u32> {
        let used = TestDriver::new(&self.memory, RINGS).used_entries();
        for (head, length) in &used {
            assert_eq!(*length, 513);
            let request = u64::from(head / 3);
            let mut data = [0; 512];
            let start = GuestAddress(DATA + request * 512);
            self.memory.read_slice(&mut data, start).unwrap();
            assert_eq!(data, [u8::try_from(request + 1).unwrap(); 512]);
        }
        used.iter().map(|(head, _)| *head).collect()
    }

    fn is_armed(&self) -> bool {
        self.transport
            .with_device(|device| device.limiter().is_armed())
    }

    fn notified(&self) -> bool {
        let event: &EventFd = &self.transport.queue_events()[0];
        event.read().is_ok()
    }
}

#[test]
fn throttled_drive_goes_on_in_order() {
    let before = METRICS.block.throttled.value();
    let drive = Fixture::new(LIMITS);
    drive.serve();
    assert_eq!(drive.done(), [0, 3]);
    assert!(drive.is_armed());
    // A notification by the driver brings it no tokens.
    drive.serve();
    assert_eq!(drive.done(), [0, 3]);
    assert!(METRICS.block.throttled.value() >= before + 2);
    drive.clock.advance(SECOND / 2);
    drive.serve();
    assert_eq!(drive.done(), [0, 3, 6]);
    drive.clock.advance(SECOND);
    drive.serve();
    assert_eq!(drive.done(), [0, 3, 6, 9]);
}

#[test]
fn operations_are_limited_one_by_one() {
    let drive = Fixture::new(r#"{"ops": {"size": 1, "one_time_burst": 1, "refill_time": 1000}}"#);
    for done in [&[0, 3][..], &[0, 3, 6], &[0, 3, 6, 9]] {
        drive.serve();
        assert_eq!(drive.done(), done);
        drive.clock.advance(SECOND);
    }
}

#[test]
fn request_larger_than_bucket_passes() {
    let drive = Fixture::new(r#"{"bandwidth": {"size": 128, "refill_time": 1000}}"#);
    drive.serve();
    assert_eq!(drive.done(), [0]);
    drive.clock.advance(3 * SECOND);
    drive.serve();
    assert_eq!(drive.done(), [0, 3]);
}

#[test]
fn paused_throttled_drive_keeps_its_requests() {
    let drive = Fixture::new(LIMITS);
    drive.serve();
    drive.transport.pause();
    drive.clock.advance(SECOND);
    drive.serve();
    assert_eq!(drive.done(), [0, 3]);
    assert_eq!(drive.transport.state().queues[0].next_available, 2);
    while drive.notified() {}
    drive.transport.resume();
    assert!(drive.notified());
    drive.serve();
    assert_eq!(drive.done(), [0, 3, 6, 9]);
}

#[test]
fn saved_throttled_drive_goes_on_elsewhere() {
    let drive = Fixture::new(LIMITS);
    drive.serve();
    drive.transport.pause();
    let drive = drive.reload(LIMITS);
    assert!(!drive.is_armed());
    drive.transport.resume();
    assert!(drive.notified());
    drive.serve();
    assert_eq!(drive.done(), [0, 3, 6, 9]);
}

#[test]
fn lifted_limit_lets_the_queue_go_on() {
    let drive = Fixture::new(LIMITS);
    drive.serve();
    while drive.notified() {}
    let unlimited = config(r#"{"bandwidth": {"size": 0, "refill_time": 0}}"#);
    drive
        .transport
        .with_device(|device| device.limiter().update(unlimited));
    drive.transport.wake_queues();
    assert!(drive.notified() && !drive.is_armed());
    drive.serve();
    assert_eq!(drive.done(), [0, 3, 6, 9]);
}

#[test]
fn reset_disarms_the_timer() {
    use crate::devices::bus::BusDevice;

    let drive = Fixture::new(LIMITS);
    drive.serve();
    assert!(drive.is_armed());
    const STATUS_REGISTER: u64 = 0x70;
    drive.transport.write(STATUS_REGISTER, &[0; 4]);
    assert!(!drive.is_armed());
}

#[test]
fn expired_timer_lets_the_queue_go_on() {
    let limits = r#"{"ops": {"size": 1, "refill_time": 5}}"#;
    let drive = Fixture::on(block(limits, MonotonicClock), ManualClock::new());
    let mut events = EventLoop::new().unwrap();
    for (descriptor, set, source) in drive.transport.event_sources() {
        let handler: Arc<dyn EventHandler> = drive.transport.clone();
        events.add(descriptor, set, handler, source).unwrap();
    }
    while drive.done().len() < usize::from(REQUESTS) {
        events.run_once().unwrap();
    }
    assert_eq!(drive.done(), [0, 3, 6, 9]);
}
