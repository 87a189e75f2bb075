//! An interface whose rate limiters do not admit everything at once.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::config::RateLimiterConfig;
use crate::memory::{HugePages, allocate};
use crate::rate_limiter::ManualClock;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::test_queue::{RawDescriptor, TestDriver, WRITE};

const RECEIVE_RINGS: u64 = 0x1_0000;
const TRANSMIT_RINGS: u64 = 0x1_4000;
const RECEIVED: u64 = 0x2_0000;
const SENT: u64 = 0x8_0000;
const PACKET: usize = 1000;
const PACKETS: u8 = 4;
const SECOND: Duration = Duration::from_secs(1);
/// Two packets each second.
const LIMITS: &str = r#"{"bandwidth": {"size": 2000, "refill_time": 1000}}"#;

/// A device with four empty buffers and four packets to send.
struct Fixture {
    memory: GuestMemory,
    device: Net,
    queues: Vec<VirtQueue>,
    host: UnixDatagram,
    clock: ManualClock,
}

fn config(json: &str) -> RateLimiterConfig {
    serde_json::from_str(json).unwrap()
}

fn packet(number: u8) -> [u8; PACKET] {
    [number; PACKET]
}

impl Fixture {
    fn new(receive: Option<&str>, transmit: Option<&str>) -> Self {
        let memory = allocate(1, HugePages::None, false).unwrap();
        let clock = ManualClock::new();
        let (host, tap) = UnixDatagram::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let limiter =
            |limits: Option<&str>| RateLimiter::new(limits.map(config), clock.clone()).unwrap();
        let limiters = Limiters {
            receive: limiter(receive),
            transmit: limiter(transmit),
        };
        let device = Net::new(Tap::from_socket(tap), None, None, limiters);
        let queue = |index: usize, rings: u64, start: u64, length: u32, flags: u16| {
            let mut driver = TestDriver::new(&memory, rings);
            let descriptors: Vec<_> = (0..PACKETS)
                .map(|number| RawDescriptor {
                    address: start + u64::from(number) * 0x1000,
                    length,
                    flags,
                    next: 0,
                })
                .collect();
            driver.write_descriptors(&descriptors);
            (0..PACKETS).for_each(|head| driver.publish(head.into()));
            driver.queue(index)
        };
        let sent = u32::try_from(PACKET).unwrap();
        let queues = vec![
            queue(RECEIVE, RECEIVE_RINGS, RECEIVED, 0x1000, WRITE),
            queue(TRANSMIT, TRANSMIT_RINGS, SENT, sent, 0),
        ];
        for number in 0..PACKETS {
            let start = GuestAddress(SENT + u64::from(number) * 0x1000);
            memory.write_slice(&packet(number), start).unwrap();
        }
        Self {
            memory,
            device,
            queues,
            host,
            clock,
        }
    }

    fn run(&mut self, cause: Cause) -> Progress {
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut active = Active {
            queues: &mut self.queues,
            memory: &self.memory,
            interrupt: &interrupt,
            features: FEATURE_MERGE_BUFFERS,
            stop: &crate::virtio::StopFlag::default(),
        };
        self.device.process(cause, &mut active).unwrap()
    }

    /// The numbers of the packets that came out on the host since the last time.
    fn sent(&self) -> Vec<u8> {
        let mut buffer = [0; 2 * PACKET];
        std::iter::from_fn(|| {
            self.host
                .recv(&mut buffer)
                .ok()
                .map(|length| (length, buffer[0]))
        })
        .map(|(length, number)| {
            assert_eq!(length, PACKET);
            number
        })
        .collect()
    }

    /// The numbers of the packets that the guest has received.
    fn received(&self) -> Vec<u8> {
        let used = TestDriver::new(&self.memory, RECEIVE_RINGS).used_entries();
        used.iter()
            .map(|(head, length)| {
                assert_eq!(*length as usize, PACKET);
                let last = RECEIVED + u64::from(*head) * 0x1000 + PACKET as u64 - 1;
                self.memory.read_obj(GuestAddress(last)).unwrap()
            })
            .collect()
    }

    fn deliver(&self) {
        for number in 0..PACKETS {
            self.host.send(&packet(number)).unwrap();
        }
    }
}

#[test]
fn throttled_transmission_goes_on_in_order() {
    let before = METRICS.net.send_throttled.value();
    let mut net = Fixture::new(None, Some(LIMITS));
    assert_eq!(net.run(Cause::Queue(TRANSMIT)), Progress::Done);
    assert_eq!(net.sent(), [0, 1]);
    assert!(net.device.limiters.transmit.is_armed());
    net.run(Cause::Queue(TRANSMIT));
    assert!(net.sent().is_empty());
    assert!(METRICS.net.send_throttled.value() >= before + 2);
    net.clock.advance(SECOND);
    net.run(Cause::Queue(TRANSMIT));
    assert_eq!(net.sent(), [2, 3]);
    let used = TestDriver::new(&net.memory, TRANSMIT_RINGS).used_entries();
    assert_eq!(used, [(0, 0), (1, 0), (2, 0), (3, 0)]);
}

#[test]
fn throttled_reception_goes_on_in_order() {
    let before = METRICS.net.receive_throttled.value();
    let mut net = Fixture::new(Some(LIMITS), None);
    net.deliver();
    assert_eq!(net.run(Cause::Backend), Progress::Done);
    assert_eq!(net.received(), [0, 1]);
    assert!(net.device.limiters.receive.is_armed());
    net.run(Cause::Backend);
    net.run(Cause::Queue(RECEIVE));
    assert_eq!(net.received(), [0, 1]);
    assert!(METRICS.net.receive_throttled.value() >= before + 3);
    net.clock.advance(SECOND);
    net.run(Cause::Queue(RECEIVE));
    assert_eq!(net.received(), [0, 1, 2, 3]);
}

#[test]
fn throttled_directions_do_not_hold_each_other() {
    let mut net = Fixture::new(None, Some(LIMITS));
    net.deliver();
    net.run(Cause::Queue(TRANSMIT));
    assert_eq!(net.sent(), [0, 1]);
    net.run(Cause::Backend);
    assert_eq!(net.received(), [0, 1, 2, 3]);
}

#[test]
fn packets_are_limited_by_number() {
    let limits = r#"{"ops": {"size": 3, "refill_time": 3000}}"#;
    let mut net = Fixture::new(Some(limits), Some(limits));
    net.deliver();
    net.run(Cause::Backend);
    net.run(Cause::Queue(TRANSMIT));
    assert_eq!((net.received(), net.sent()), (vec![0, 1, 2], vec![0, 1, 2]));
    net.clock.advance(SECOND);
    net.run(Cause::Queue(RECEIVE));
    net.run(Cause::Queue(TRANSMIT));
    assert_eq!((net.received(), net.sent()), (vec![0, 1, 2, 3], vec![3]));
}

#[test]
fn packet_larger_than_bucket_leaves_debt() {
    let limits = r#"{"bandwidth": {"size": 500, "refill_time": 1000}}"#;
    let mut net = Fixture::new(Some(limits), None);
    net.deliver();
    net.run(Cause::Backend);
    assert_eq!(net.received(), [0]);
    net.clock.advance(SECOND);
    net.run(Cause::Queue(RECEIVE));
    assert_eq!(net.received(), [0]);
    net.clock.advance(SECOND / 2);
    net.run(Cause::Queue(RECEIVE));
    assert_eq!(net.received(), [0, 1]);
}

#[test]
fn paused_throttled_interface_keeps_its_packets() {
    let mut net = Fixture::new(Some(LIMITS), Some(LIMITS));
    net.deliver();
    net.run(Cause::Backend);
    net.run(Cause::Queue(TRANSMIT));
    assert_eq!((net.received(), net.sent()), (vec![0, 1], vec![0, 1]));
    net.device.pause(&mut net.queues);
    for queue in &net.queues {
        assert_eq!(queue.state().next_available, 2);
    }
    net.clock.advance(SECOND);
    net.run(Cause::Queue(RECEIVE));
    net.run(Cause::Queue(TRANSMIT));
    assert_eq!((net.received(), net.sent()), (vec![0, 1, 2, 3], vec![2, 3]));
}

#[test]
fn reset_disarms_both_timers() {
    let mut net = Fixture::new(Some(LIMITS), Some(LIMITS));
    net.deliver();
    net.run(Cause::Backend);
    net.run(Cause::Queue(TRANSMIT));
    net.device.reset();
    let limiters = net.device.limiters();
    assert!(!limiters.receive.is_armed() && !limiters.transmit.is_armed());
}
