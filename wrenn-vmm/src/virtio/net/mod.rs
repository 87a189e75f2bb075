//! Network interface (specification 1.2, section 5.1) on a TAP interface of the host.
//!
//! Packets go between TAP and guest memory without a copy and with the virtio header in
//! front, so that checksums and large TCP segments stay unfinished across both.
//!
//! ```text
//! TAP ── readv ──▶ as many receive buffers as a packet may need ─▶ used: those it filled
//! TAP ◀─ writev ── one chain a packet
//! ```
//!
//! Between two packets the device keeps the buffers that it took from the receive queue and
//! did not need. When it is paused it puts them back, so that a snapshot needs nothing but
//! the queues.
//!
//! Each direction has a rate limiter. A packet to be sent waits in its queue for its tokens. How
//! long a packet is that the TAP interface holds is known once it has been read: it is read when
//! earlier ones are paid, and paid then, so that the device holds no packet back.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};

use crate::config::MacAddress;
use crate::memory::GuestMemory;
use crate::metrics::METRICS;
use crate::rate_limiter::RateLimiter;
use crate::sys::block_io::Scatter;
use crate::sys::tap::{self, Tap};
use crate::virtio::queue::{Chain, VirtQueue, in_memory};
use crate::virtio::{Active, Cause, DeviceType, Progress, QueueBroken, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

const QUEUE_SIZES: &[u16] = &[256, 256];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Packets in one direction before others get their turn.
const BATCH: usize = 128;

/// Length of the header before each packet, with its buffer count.
const HEADER_LENGTH: usize = 12;
/// Where the header counts the buffers that a received packet fills.
const BUFFER_COUNT_OFFSET: u64 = 10;
/// The longest packet with segmentation left undone: 65535 bytes of IP and an Ethernet
/// header.
const LARGE_PACKET: usize = HEADER_LENGTH + 14 + 65535;
/// The longest ordinary packet: 1500 bytes and an Ethernet header with VLAN tag.
const SMALL_PACKET: usize = HEADER_LENGTH + 18 + 1500;

const FEATURE_CHECKSUM: u64 = 1 << 0;
const FEATURE_GUEST_CHECKSUM: u64 = 1 << 1;
const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_GUEST_TSO4: u64 = 1 << 7;
const FEATURE_GUEST_TSO6: u64 = 1 << 8;
const FEATURE_GUEST_ECN: u64 = 1 << 9;
const FEATURE_HOST_TSO4: u64 = 1 << 11;
const FEATURE_HOST_TSO6: u64 = 1 << 12;
const FEATURE_MERGE_BUFFERS: u64 = 1 << 15;

/// The device.
#[derive(Debug)]
pub struct Net {
    tap: Tap,
    offers: u64,
    buffers: Buffers,
    limiters: Limiters,
    /// `mac`, `status`, `max_virtqueue_pairs`, `mtu`.
    configuration: [u8; 12],
}

/// The limits of both directions.
#[derive(Debug)]
pub struct Limiters {
    /// To the guest.
    pub receive: RateLimiter,
    /// From the guest.
    pub transmit: RateLimiter,
}

/// Receive buffers that were taken from the queue and that no packet has filled yet, in
/// order.
///
/// With offloads a packet may need dozens of them, and most need one. So they are kept for
/// the next packet rather than taken and put back each time.
#[derive(Debug, Default)]
struct Buffers {
    each: VecDeque<Buffer>,
    /// What they are made of: address and length, which lie in guest memory.
    pieces: VecDeque<(u64, usize)>,
    length: usize,
}

/// One of them.
#[derive(Debug)]
struct Buffer {
    head: u16,
    pieces: usize,
    length: usize,
}

impl Net {
    /// A device on an open TAP interface.
    pub fn new(tap: Tap, mac: Option<MacAddress>, mtu: Option<u16>, limiters: Limiters) -> Self {
        let mut offers = FEATURE_CHECKSUM
            | FEATURE_GUEST_CHECKSUM
            | FEATURE_GUEST_TSO4
            | FEATURE_GUEST_TSO6
            | FEATURE_HOST_TSO4
            | FEATURE_HOST_TSO6
            | FEATURE_MERGE_BUFFERS;
        let mut configuration = [0; 12];
        if let Some(mac) = mac {
            offers |= FEATURE_MAC;
            configuration[..6].copy_from_slice(&mac.0);
        }
        if let Some(mtu) = mtu {
            offers |= FEATURE_MTU;
            configuration[10..].copy_from_slice(&mtu.to_le_bytes());
        }
        Self {
            tap,
            offers,
            buffers: Buffers::default(),
            limiters,
            configuration,
        }
    }

    /// Puts another TAP interface behind the device, before it is activated.
    pub fn replace(&mut self, tap: Tap) {
        self.tap = tap;
    }

    /// The limits of its queues.
    pub fn limiters(&mut self) -> &mut Limiters {
        &mut self.limiters
    }

    fn receive(&mut self, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        let memory = active.memory;
        let needed = needed_capacity(active.features);
        let merge = active.features & FEATURE_MERGE_BUFFERS != 0;
        let Some(queue) = active.queues.get_mut(RECEIVE) else {
            return Ok(Progress::Done);
        };
        let mut progress = Progress::More(RECEIVE);
        for _ in 0..BATCH {
            if !self.limiters.receive.admits(1) {
                METRICS.net.receive_throttled.add(1);
                progress = Progress::Done;
                break;
            }
            if !self.buffers.gather(queue, memory, needed, merge)? {
                // The guest notifies when it has given more.
                progress = Progress::Done;
                break;
            }
            match self.receive_packet(queue, memory)? {
                Received::Packet => {}
                Received::Nothing => {
                    progress = Progress::Done;
                    break;
                }
            }
        }
        queue.notify(memory, active.interrupt)?;
        Ok(progress)
    }

    fn receive_packet(
        &mut self,
        queue: &mut VirtQueue,
        memory: &GuestMemory,
    ) -> Result<Received, QueueBroken> {
        // `Buffers::add` has checked every piece.
        let Ok(scatter) = Scatter::resolve(memory, self.buffers.pieces.iter().copied()) else {
            return Ok(Received::Nothing);
        };
        let length = match scatter.read_packet(self.tap.as_raw_fd()) {
            Ok(length) if length >= HEADER_LENGTH => length,
            Ok(_) => return Ok(Received::Nothing),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::WouldBlock {
                    log::debug!("cannot receive from TAP: {error}");
                    METRICS.net.receive_failures.add(1);
                }
                return Ok(Received::Nothing);
            }
        };
        METRICS.net.received_packets.add(1);
        METRICS.net.received_bytes.add(length as u64);
        self.limiters.receive.charge(length as u64);
        let used = self.buffers.fill(length, memory);
        queue.add_used_together(memory, &used)?;
        Ok(Received::Packet)
    }

    fn transmit(&mut self, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        let memory = active.memory;
        let Some(queue) = active.queues.get_mut(TRANSMIT) else {
            return Ok(Progress::Done);
        };
        if self.limiters.transmit.is_throttled() {
            METRICS.net.send_throttled.add(1);
            return Ok(Progress::Done);
        }
        queue.serve(memory, active.interrupt, BATCH, |chain| {
            let packet = packet_of(chain, memory);
            let length = packet.as_ref().map_or(0, Scatter::length);
            if !self.limiters.transmit.consume(length as u64) {
                METRICS.net.send_throttled.add(1);
                return None;
            }
            self.transmit_packet(packet);
            Some(0)
        })
    }

    /// Sends a packet, or drops it: a network may lose packets, and nothing that a guest
    /// sends can make the VMM wait.
    fn transmit_packet(&self, packet: Option<Scatter<'_>>) {
        let sent = packet
            .ok_or(std::io::ErrorKind::InvalidInput.into())
            .and_then(|packet| packet.write_packet(self.tap.as_raw_fd()));
        match sent {
            Ok(length) => {
                METRICS.net.sent_packets.add(1);
                METRICS.net.sent_bytes.add(length as u64);
            }
            Err(error) => {
                log::debug!("packet dropped: {error}");
                METRICS.net.send_failures.add(1);
            }
        }
    }
}

enum Received {
    Packet,
    Nothing,
}

/// How much room must wait before a packet is read, since one that does not fit is cut.
const fn needed_capacity(features: u64) -> usize {
    if features & (FEATURE_GUEST_TSO4 | FEATURE_GUEST_TSO6) == 0 {
        SMALL_PACKET
    } else {
        LARGE_PACKET
    }
}

impl Buffers {
    /// Takes buffers until they hold any packet; false if the guest has not given enough.
    fn gather(
        &mut self,
        queue: &mut VirtQueue,
        memory: &GuestMemory,
        needed: usize,
        merge: bool,
    ) -> Result<bool, QueueBroken> {
        loop {
            if self.length >= needed || (!merge && !self.each.is_empty()) {
                return Ok(true);
            }
            queue.disable_notification(memory)?;
            let Some(chain) = queue.pop(memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(false);
            };
            // A buffer that cannot be used cannot be skipped either, since those before it
            // may have to be put back. No driver gives one by accident.
            if !self.add(&chain, memory) {
                return Err(QueueBroken {
                    queue: RECEIVE,
                    reason: "unusable receive buffer".into(),
                });
            }
        }
    }

    /// Adds a chain, whose buffers the device may write and whose first one must at least
    /// hold the header; false if it is not like that.
    fn add(&mut self, chain: &Chain, memory: &GuestMemory) -> bool {
        let holds_header = chain
            .descriptors
            .first()
            .is_some_and(|first| first.len() as usize >= HEADER_LENGTH);
        let usable = chain
            .descriptors
            .iter()
            .all(|part| part.is_write_only() && in_memory(memory, part));
        if !chain.complete || !holds_header || !usable {
            return false;
        }
        let before = self.length;
        for part in &chain.descriptors {
            self.pieces.push_back((part.addr().0, part.len() as usize));
            self.length += part.len() as usize;
        }
        self.each.push_back(Buffer {
            head: chain.head,
            pieces: chain.descriptors.len(),
            length: self.length - before,
        });
        true
    }

    /// Gives out the buffers that a packet of `length` bytes fills, as head and length for
    /// the used ring, and writes their number into its header.
    fn fill(&mut self, length: usize, memory: &GuestMemory) -> Vec<(u16, u32)> {
        let mut used = Vec::with_capacity(1);
        let (mut left, mut pieces) = (length, 0);
        while left > 0
            && let Some(buffer) = self.each.pop_front()
        {
            let part = left.min(buffer.length);
            left -= part;
            pieces += buffer.pieces;
            self.length -= buffer.length;
            used.push((buffer.head, u32::try_from(part).unwrap_or(u32::MAX)));
        }
        if let (Some((start, _)), Ok(count)) = (self.pieces.front(), u16::try_from(used.len())) {
            let address = GuestAddress(start + BUFFER_COUNT_OFFSET);
            // `add` has checked that the header lies in guest memory in one piece.
            if let Err(error) = memory.write_obj(count.to_le(), address) {
                log::debug!("cannot write the buffer count: {error}");
            }
        }
        self.pieces.drain(..pieces.min(self.pieces.len()));
        used
    }

    /// Puts all of them back into the queue, from where they come again.
    fn put_back(&mut self, queue: &mut VirtQueue) {
        for _ in &self.each {
            queue.undo_pop();
        }
        *self = Self::default();
    }
}

/// The readable bytes of a transmit chain: header and packet.
fn packet_of<'a>(chain: &Chain, memory: &'a GuestMemory) -> Option<Scatter<'a>> {
    let readable = chain.descriptors.iter().all(|descriptor| {
        !descriptor.is_write_only() && (descriptor.len() == 0 || in_memory(memory, descriptor))
    });
    if !chain.complete || !readable {
        return None;
    }
    let ranges = chain
        .descriptors
        .iter()
        .map(|part| (part.addr().0, part.len() as usize));
    let packet = Scatter::resolve(memory, ranges).ok()?;
    let length = packet.length();
    (length > HEADER_LENGTH && length <= LARGE_PACKET + 4).then_some(packet)
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.offers
    }

    fn configuration(&self) -> &[u8] {
        &self.configuration
    }

    fn backend(&self) -> Option<RawFd> {
        Some(self.tap.as_raw_fd())
    }

    fn timers(&self) -> Vec<(RawFd, usize)> {
        let Limiters { receive, transmit } = &self.limiters;
        vec![(receive.timer(), RECEIVE), (transmit.timer(), TRANSMIT)]
    }

    fn activate(&mut self, features: u64) {
        let pairs = [
            (FEATURE_GUEST_CHECKSUM, tap::OFFLOAD_CHECKSUM),
            (FEATURE_GUEST_TSO4, tap::OFFLOAD_TSO4),
            (FEATURE_GUEST_TSO6, tap::OFFLOAD_TSO6),
            (FEATURE_GUEST_ECN, tap::OFFLOAD_TSO_ECN),
        ];
        let flags = pairs
            .into_iter()
            .filter(|(feature, _)| features & feature != 0)
            .fold(0, |flags, (_, flag)| flags | flag);
        if let Err(error) = self.tap.set_offload(flags) {
            log::error!("cannot set the offloads of the TAP interface: {error}");
        }
    }

    fn reset(&mut self) {
        self.buffers = Buffers::default();
        self.limiters.receive.disarm();
        self.limiters.transmit.disarm();
    }

    fn pause(&mut self, queues: &mut [VirtQueue]) {
        if let Some(queue) = queues.get_mut(RECEIVE) {
            self.buffers.put_back(queue);
        }
    }

    fn process(&mut self, cause: Cause, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        match cause {
            Cause::Queue(TRANSMIT) => self.transmit(active),
            Cause::Queue(_) | Cause::Backend => self.receive(active),
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod throttle_tests;
