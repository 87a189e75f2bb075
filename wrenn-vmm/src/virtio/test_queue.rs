//! A driver for tests: writes rings into guest memory as a guest would.

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;
use crate::virtio::queue::VirtQueue;

/// The buffer goes on in another descriptor.
pub(super) const NEXT: u16 = 1;
/// The device writes the buffer.
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;

const SIZE: u16 = 64;

/// One descriptor as the guest writes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawDescriptor {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

/// The driver's side of a queue, its rings at `base`.
pub(super) struct TestDriver<'a> {
    memory: &'a GuestMemory,
    base: u64,
    published: u16,
}

impl<'a> TestDriver<'a> {
    pub(super) fn new(memory: &'a GuestMemory, base: u64) -> Self {
        Self {
            memory,
            base,
            published: 0,
        }
    }

    fn available(&self) -> u64 {
        self.base + 0x1000
    }

    fn used(&self) -> u64 {
        self.base + 0x2000
    }

    /// The device's side.
    pub(super) fn queue(&self, index: usize) -> VirtQueue {
        let low = |address: u64| Some(u32::try_from(address).unwrap());
        let mut queue = VirtQueue::new(index, SIZE).unwrap();
        let inner = queue.set_up();
        inner.set_size(SIZE);
        inner.set_desc_table_address(low(self.base), None);
        inner.set_avail_ring_address(low(self.available()), None);
        inner.set_used_ring_address(low(self.used()), None);
        inner.set_ready(true);
        assert!(queue.is_valid(self.memory));
        queue
    }

    /// Writes a descriptor table anywhere.
    pub(super) fn write_table(&self, at: u64, descriptors: &[RawDescriptor]) {
        for (slot, descriptor) in (at..).step_by(16).zip(descriptors) {
            self.memory
                .write_obj(descriptor.address, GuestAddress(slot))
                .unwrap();
            self.memory
                .write_obj(descriptor.length, GuestAddress(slot + 8))
                .unwrap();
            self.memory
                .write_obj(descriptor.flags, GuestAddress(slot + 12))
                .unwrap();
            self.memory
                .write_obj(descriptor.next, GuestAddress(slot + 14))
                .unwrap();
        }
    }

    /// Writes the queue's own table.
    pub(super) fn write_descriptors(&self, descriptors: &[RawDescriptor]) {
        self.write_table(self.base, descriptors);
    }

    /// Makes the chain that starts at `head` available.
    pub(super) fn publish(&mut self, head: u16) {
        let slot = self.available() + 4 + 2 * u64::from(self.published % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.published = self.published.wrapping_add(1);
        self.set_available_index(self.published);
    }

    /// Writes the available index as it is, right or wrong.
    pub(super) fn set_available_index(&self, index: u16) {
        self.memory
            .write_obj(index, GuestAddress(self.available() + 2))
            .unwrap();
    }

    /// Builds one chain of these buffers, from descriptor 0 on, and publishes it.
    pub(super) fn request(&mut self, buffers: &[(u64, u32, u16)]) {
        let last = buffers.len() - 1;
        let descriptors: Vec<_> = buffers
            .iter()
            .enumerate()
            .map(|(index, (address, length, flags))| RawDescriptor {
                address: *address,
                length: *length,
                flags: flags | if index < last { NEXT } else { 0 },
                next: u16::try_from(index + 1).unwrap(),
            })
            .collect();
        self.write_descriptors(&descriptors);
        self.publish(0);
    }

    /// What the device has given back: head and length, in order.
    pub(super) fn used_entries(&self) -> Vec<(u32, u32)> {
        let count: u16 = self.memory.read_obj(GuestAddress(self.used() + 2)).unwrap();
        (0..u64::from(count))
            .map(|entry| {
                let slot = self.used() + 4 + 8 * entry;
                let head = self.memory.read_obj(GuestAddress(slot)).unwrap();
                let length = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
                (head, length)
            })
            .collect()
    }
}
