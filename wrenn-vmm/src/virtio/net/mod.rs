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
//! Between two calls the device holds no buffers: what it took from the receive queue
//! and did not need, it puts back. So a snapshot needs nothing but the queues.

use std::os::fd::{AsRawFd, RawFd};

use crate::config::MacAddress;
use crate::memory::GuestMemory;
use crate::metrics::METRICS;
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
    /// `mac`, `status`, `max_virtqueue_pairs`, `mtu`.
    configuration: [u8; 12],
}

/// One receive buffer of the guest.
struct Buffer {
    head: u16,
    ranges: Vec<(u64, usize)>,
    length: usize,
}

impl Net {
    /// A device on an open TAP interface.
    pub fn new(tap: Tap, mac: Option<MacAddress>, mtu: Option<u16>) -> Self {
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
            configuration,
        }
    }

    /// Puts another TAP interface behind the device, before it is activated.
    pub fn replace(&mut self, tap: Tap) {
        self.tap = tap;
    }

    fn receive(&self, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        let memory = active.memory;
        let needed = needed_capacity(active.features);
        let merge = active.features & FEATURE_MERGE_BUFFERS != 0;
        let Some(queue) = active.queues.get_mut(RECEIVE) else {
            return Ok(Progress::Done);
        };
        let mut buffers: Vec<Buffer> = Vec::new();
        let mut progress = Progress::More(RECEIVE);
        for _ in 0..BATCH {
            if !gather(queue, memory, &mut buffers, needed, merge)? {
                // The guest notifies when it has given more.
                progress = Progress::Done;
                break;
            }
            match self.receive_packet(queue, memory, &mut buffers)? {
                Received::Packet => {}
                Received::Nothing => {
                    progress = Progress::Done;
                    break;
                }
            }
        }
        for _ in &buffers {
            queue.undo_pop();
        }
        queue.notify(memory, active.interrupt)?;
        Ok(progress)
    }

    fn receive_packet(
        &self,
        queue: &mut VirtQueue,
        memory: &GuestMemory,
        buffers: &mut Vec<Buffer>,
    ) -> Result<Received, QueueBroken> {
        let ranges = buffers
            .iter()
            .flat_map(|buffer| buffer.ranges.iter().copied());
        // `gather` has checked every range.
        let Ok(scatter) = Scatter::resolve(memory, ranges) else {
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

        let mut left = length;
        let mut used = Vec::with_capacity(buffers.len());
        for buffer in buffers.iter() {
            if left == 0 {
                break;
            }
            let part = left.min(buffer.length);
            left -= part;
            used.push((buffer.head, u32::try_from(part).unwrap_or(u32::MAX)));
        }
        write_buffer_count(memory, buffers, used.len());
        queue.add_used_together(memory, &used)?;
        buffers.drain(..used.len());
        Ok(Received::Packet)
    }

    fn transmit(&self, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        let memory = active.memory;
        let Some(queue) = active.queues.get_mut(TRANSMIT) else {
            return Ok(Progress::Done);
        };
        for _ in 0..BATCH {
            queue.disable_notification(memory)?;
            let Some(chain) = queue.pop(memory)? else {
                queue.notify(memory, active.interrupt)?;
                if queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            self.transmit_packet(&chain, memory);
            queue.add_used(memory, chain.head, 0)?;
        }
        queue.notify(memory, active.interrupt)?;
        Ok(Progress::More(TRANSMIT))
    }

    /// Sends a packet, or drops it: a network may lose packets, and nothing that a guest
    /// sends can make the VMM wait.
    fn transmit_packet(&self, chain: &Chain, memory: &GuestMemory) {
        let sent = packet_of(chain, memory)
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

/// Takes buffers until they hold any packet; false if the guest has not given enough.
fn gather(
    queue: &mut VirtQueue,
    memory: &GuestMemory,
    buffers: &mut Vec<Buffer>,
    needed: usize,
    merge: bool,
) -> Result<bool, QueueBroken> {
    loop {
        let room = if merge {
            buffers.iter().map(|buffer| buffer.length).sum()
        } else {
            buffers.first().map_or(0, |buffer| buffer.length)
        };
        if room >= needed || (!merge && !buffers.is_empty()) {
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
        let buffer = buffer_of(&chain, memory).ok_or_else(|| QueueBroken {
            queue: RECEIVE,
            reason: "unusable receive buffer".into(),
        })?;
        buffers.push(buffer);
    }
}

/// The writable bytes of a receive chain. They must at least hold the header.
fn buffer_of(chain: &Chain, memory: &GuestMemory) -> Option<Buffer> {
    let mut ranges = Vec::with_capacity(chain.descriptors.len());
    let mut length = 0usize;
    for descriptor in &chain.descriptors {
        if !descriptor.is_write_only() || !in_memory(memory, descriptor) {
            return None;
        }
        ranges.push((descriptor.addr().0, descriptor.len() as usize));
        length += descriptor.len() as usize;
    }
    let holds_header = ranges
        .first()
        .is_some_and(|(_, length)| *length >= HEADER_LENGTH);
    (chain.complete && holds_header).then_some(Buffer {
        head: chain.head,
        ranges,
        length,
    })
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

fn write_buffer_count(memory: &GuestMemory, buffers: &[Buffer], used: usize) {
    let first = buffers.first().and_then(|buffer| buffer.ranges.first());
    if let (Some((start, _)), Ok(count)) = (first, u16::try_from(used)) {
        let address = GuestAddress(start + BUFFER_COUNT_OFFSET);
        // `buffer_of` has checked that the header lies in guest memory in one piece.
        if let Err(error) = memory.write_obj(count.to_le(), address) {
            log::debug!("cannot write the buffer count: {error}");
        }
    }
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

    fn process(&mut self, cause: Cause, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        match cause {
            Cause::Queue(TRANSMIT) => self.transmit(active),
            Cause::Queue(_) | Cause::Backend => self.receive(active),
        }
    }
}

#[cfg(test)]
mod tests;
