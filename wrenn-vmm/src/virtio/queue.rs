//! One virtqueue, with the bookkeeping that every device needs the same way.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMemory;
use crate::virtio::QueueBroken;
use crate::virtio::interrupt::Interrupt;

/// The most descriptors that one request may have. Linux stays far below (its block and
/// network drivers use up to `MAX_SKB_FRAGS` + 2 or 254 segments).
pub const MAX_CHAIN: usize = 512;

/// The state of a queue, for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The largest size that the device offers.
    pub max_size: u16,
    /// The size that the driver chose.
    pub size: u16,
    /// Whether the driver has finished setting it up.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest address of the available ring.
    pub available_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
    /// Next entry of the available ring that the device reads.
    pub next_available: u16,
    /// Next entry of the used ring that the device writes.
    pub next_used: u16,
    /// Whether notifications are suppressed by index.
    pub event_idx: bool,
}

/// A queue with its number.
#[derive(Debug)]
pub struct VirtQueue {
    index: usize,
    queue: Queue,
}

/// One request of the driver: its descriptors, bounded and in order.
#[derive(Debug)]
pub struct Chain {
    /// What the used ring is told.
    pub head: u16,
    /// The buffers.
    pub descriptors: Vec<Descriptor>,
    /// Whether the whole chain was read: it was not too long, had no loop, no bad index
    /// and no broken indirect table.
    pub complete: bool,
}

impl VirtQueue {
    /// Queue number `index`, of up to `max_size` entries.
    ///
    /// # Errors
    /// If the size is no power of two.
    pub fn new(index: usize, max_size: u16) -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            index,
            queue: Queue::new(max_size)?,
        })
    }

    /// The registers that the driver writes.
    pub fn set_up(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// The queue, for reading.
    pub fn inner(&self) -> &Queue {
        &self.queue
    }

    /// Whether the driver enabled it.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Whether all rings lie in guest memory.
    pub fn is_valid(&self, memory: &GuestMemory) -> bool {
        self.queue.size() > 0 && self.queue.is_valid(memory)
    }

    fn broken(&self, reason: impl ToString) -> QueueBroken {
        QueueBroken {
            queue: self.index,
            reason: reason.to_string(),
        }
    }

    /// Takes the next request, if there is one.
    ///
    /// # Errors
    /// If the rings contradict themselves.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueBroken> {
        let next = match self.queue.iter(memory) {
            Ok(mut iterator) => iterator.next(),
            Err(error) => return Err(self.broken(error)),
        };
        match next {
            Some(chain) => Ok(Some(read_chain(chain))),
            // The iterator also ends at a descriptor index beyond the table. Such an
            // entry would never go away, so the queue is broken rather than empty.
            None if self.has_available(memory)? => {
                Err(self.broken("available ring names a descriptor that does not exist"))
            }
            None => Ok(None),
        }
    }

    fn has_available(&self, memory: &GuestMemory) -> Result<bool, QueueBroken> {
        let index = self
            .queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|error| self.broken(error))?;
        Ok(index.0 != self.queue.next_avail())
    }

    /// Puts back the request that was taken last.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a request back to the driver, with `length` bytes written.
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn add_used(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        length: u32,
    ) -> Result<(), QueueBroken> {
        self.queue
            .add_used(memory, head, length)
            .map_err(|error| self.broken(error))
    }

    /// Interrupts the guest if it wants to know about what was used.
    ///
    /// # Errors
    /// If the rings cannot be read.
    pub fn notify(
        &mut self,
        memory: &GuestMemory,
        interrupt: &Interrupt,
    ) -> Result<(), QueueBroken> {
        if self
            .queue
            .needs_notification(memory)
            .map_err(|error| self.broken(error))?
        {
            interrupt.notify_queue();
        }
        Ok(())
    }

    /// Asks the driver to notify again; true if requests came meanwhile.
    ///
    /// # Errors
    /// If the rings cannot be accessed.
    pub fn enable_notification(&mut self, memory: &GuestMemory) -> Result<bool, QueueBroken> {
        self.queue
            .enable_notification(memory)
            .map_err(|error| self.broken(error))
    }

    /// Asks the driver not to notify while the queue is being worked on anyway.
    ///
    /// # Errors
    /// If the rings cannot be accessed.
    pub fn disable_notification(&mut self, memory: &GuestMemory) -> Result<(), QueueBroken> {
        self.queue
            .disable_notification(memory)
            .map_err(|error| self.broken(error))
    }

    /// The state.
    pub fn state(&self) -> QueueState {
        QueueState {
            max_size: self.queue.max_size(),
            size: self.queue.size(),
            ready: self.queue.ready(),
            descriptor_table: self.queue.desc_table(),
            available_ring: self.queue.avail_ring(),
            used_ring: self.queue.used_ring(),
            next_available: self.queue.next_avail(),
            next_used: self.queue.next_used(),
            event_idx: self.queue.event_idx_enabled(),
        }
    }

    /// A queue in a saved state.
    ///
    /// # Errors
    /// If sizes or alignments are impossible.
    pub fn restore(index: usize, state: QueueState) -> Result<Self, virtio_queue::Error> {
        let queue = Queue::try_from(virtio_queue::QueueState {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            desc_table: state.descriptor_table,
            avail_ring: state.available_ring,
            used_ring: state.used_ring,
            next_avail: state.next_available,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx,
        })?;
        Ok(Self { index, queue })
    }
}

fn read_chain(mut chain: DescriptorChain<&GuestMemory>) -> Chain {
    let head = chain.head_index();
    let mut descriptors = Vec::with_capacity(8);
    let mut complete = false;
    while descriptors.len() < MAX_CHAIN {
        let Some(descriptor) = chain.next() else {
            break;
        };
        descriptors.push(descriptor);
        // The walk ends for many reasons; only a last descriptor without a successor is
        // a good one.
        complete = !descriptor.has_next();
        if complete {
            break;
        }
    }
    Chain {
        head,
        descriptors,
        complete,
    }
}

/// Whether a buffer lies in guest memory, in one piece.
pub fn in_memory(memory: &GuestMemory, descriptor: &Descriptor) -> bool {
    GuestMemoryBackend::check_range(
        memory,
        GuestAddress(descriptor.addr().0),
        descriptor.len() as usize,
    )
}
