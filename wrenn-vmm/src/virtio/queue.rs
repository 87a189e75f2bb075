//! One virtqueue, with the bookkeeping that every device needs the same way.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMemory;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::{Progress, QueueBroken};

/// The most descriptors that one request may have. Linux stays far below (its block and
/// network drivers use up to `MAX_SKB_FRAGS` + 2 or 254 segments).
pub const MAX_CHAIN: usize = 512;

/// The driver does not want interrupts (flags of the available ring).
const AVAILABLE_NO_INTERRUPT: u16 = 1;
/// Where entries start in the used ring.
const USED_ENTRIES: u64 = 4;
/// Size of an entry of the used ring.
const USED_ENTRY_SIZE: u64 = 8;

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
    /// Where the used ring stood when the guest was told last.
    notified: Wrapping<u16>,
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
            notified: Wrapping(0),
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
        // Looked at first: what the driver adds after an iterator found the ring empty must
        // not be taken for an entry that it cannot yield.
        if !self.has_available(memory)? {
            return Ok(None);
        }
        let next = match self.queue.iter(memory) {
            Ok(mut iterator) => iterator.next(),
            Err(error) => return Err(self.broken(error)),
        };
        match next {
            Some(chain) => Ok(Some(read_chain(chain))),
            // The iterator also ends at a descriptor index beyond the table. Such an
            // entry would never go away, so the queue is broken rather than empty.
            None => Err(self.broken("available ring names a descriptor that does not exist")),
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

    /// Puts the queue back to where it was before the driver set it up.
    pub fn reset(&mut self) {
        self.queue.reset();
        self.notified = Wrapping(0);
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

    /// Gives several requests back at once: the driver sees all of them or none, which a
    /// packet that is spread over receive buffers needs (specification 1.2, section
    /// 5.1.6.4).
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn add_used_together(
        &mut self,
        memory: &GuestMemory,
        used: &[(u16, u32)],
    ) -> Result<(), QueueBroken> {
        let Some(((last_head, last_length), others)) = used.split_last() else {
            return Ok(());
        };
        // All entries but the last go behind the index, which the last then moves past
        // all of them.
        let mut next = Wrapping(self.queue.next_used());
        for (head, length) in others {
            let slot = u64::from(next.0 % self.queue.size());
            let address = self.queue.used_ring() + USED_ENTRIES + slot * USED_ENTRY_SIZE;
            let entry = [u32::from(*head).to_le(), length.to_le()];
            memory
                .write_obj(entry, GuestAddress(address))
                .map_err(|error| self.broken(error))?;
            next += 1;
        }
        self.queue.set_next_used(next.0);
        self.add_used(memory, *last_head, *last_length)
    }

    /// Has requests served and given back, up to `most` of them; `serve` says how many bytes it
    /// has written into each, or `None` if the request is to stay in the queue, which is not
    /// worked on any more then. The driver is told at the end.
    ///
    /// # Errors
    /// If the rings contradict themselves.
    pub fn serve(
        &mut self,
        memory: &GuestMemory,
        interrupt: &Interrupt,
        most: usize,
        mut serve: impl FnMut(&Chain) -> Option<u32>,
    ) -> Result<Progress, QueueBroken> {
        for _ in 0..most {
            self.disable_notification(memory)?;
            let Some(chain) = self.pop(memory)? else {
                self.notify(memory, interrupt)?;
                if self.enable_notification(memory)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            let Some(written) = serve(&chain) else {
                self.undo_pop();
                self.notify(memory, interrupt)?;
                return Ok(Progress::Done);
            };
            self.add_used(memory, chain.head, written)?;
        }
        self.notify(memory, interrupt)?;
        Ok(Progress::More(self.index))
    }

    /// Interrupts the guest if it wants to know about what was used since it was told
    /// last (specification 1.2, section 2.7.7).
    ///
    /// # Errors
    /// If the rings cannot be read.
    pub fn notify(
        &mut self,
        memory: &GuestMemory,
        interrupt: &Interrupt,
    ) -> Result<(), QueueBroken> {
        let new = Wrapping(self.queue.next_used());
        let old = std::mem::replace(&mut self.notified, new);
        if new == old {
            return Ok(());
        }
        // What was used must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wanted = if self.queue.event_idx_enabled() {
            let event = Wrapping(self.read_available(memory, 2 + self.queue.size())?);
            new - event - Wrapping(1) < new - old
        } else {
            self.read_available(memory, 0)? & AVAILABLE_NO_INTERRUPT == 0
        };
        if wanted {
            interrupt.notify_queue();
        }
        Ok(())
    }

    /// A 16-bit word of the available ring: flags, index, entries, and behind them the
    /// index that the driver wants to be interrupted at.
    fn read_available(&self, memory: &GuestMemory, word: u16) -> Result<u16, QueueBroken> {
        let address = GuestAddress(self.queue.avail_ring() + 2 * u64::from(word));
        memory
            .load::<u16>(address, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|error| self.broken(error))
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
        let notified = Wrapping(queue.next_used());
        Ok(Self {
            index,
            queue,
            notified,
        })
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::memory::{HugePages, allocate};
    use crate::virtio::test_queue::{RawDescriptor, TestDriver};

    const RINGS: u64 = 0x1_0000;
    const AVAILABLE: u64 = RINGS + 0x1000;

    #[test]
    fn entries_that_belong_together_appear_together() {
        let memory = allocate(1, HugePages::None, false).unwrap();
        let driver = TestDriver::new(&memory, RINGS);
        let mut queue = driver.queue(0);
        queue
            .add_used_together(&memory, &[(5, 100), (6, 200), (7, 3)])
            .unwrap();
        queue.add_used_together(&memory, &[]).unwrap();
        queue.add_used_together(&memory, &[(1, 4)]).unwrap();
        assert_eq!(driver.used_entries(), [(5, 100), (6, 200), (7, 3), (1, 4)]);
    }

    #[test]
    fn driver_is_told_once_and_only_if_it_wants() {
        let memory = allocate(1, HugePages::None, false).unwrap();
        let driver = TestDriver::new(&memory, RINGS);
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut queue = driver.queue(0);
        let told = |queue: &mut VirtQueue| {
            queue.notify(&memory, &interrupt).unwrap();
            interrupt.line().read().is_ok()
        };
        assert!(!told(&mut queue));
        queue.add_used(&memory, 0, 0).unwrap();
        assert!(told(&mut queue));
        assert!(!told(&mut queue));
        memory
            .write_obj(AVAILABLE_NO_INTERRUPT, GuestAddress(AVAILABLE))
            .unwrap();
        queue.add_used(&memory, 0, 0).unwrap();
        assert!(!told(&mut queue));
    }

    #[test]
    fn driver_is_told_when_the_ring_passes_the_index_it_named() {
        let memory = allocate(1, HugePages::None, false).unwrap();
        let driver = TestDriver::new(&memory, RINGS);
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut queue = driver.queue(0);
        queue.set_up().set_event_idx(true);
        // Behind the flags, the index and 64 entries of the available ring.
        memory
            .write_obj(2u16, GuestAddress(AVAILABLE + 4 + 128))
            .unwrap();
        let told: Vec<_> = (0..5)
            .map(|head| {
                queue.add_used(&memory, head, 0).unwrap();
                queue.notify(&memory, &interrupt).unwrap();
                interrupt.line().read().is_ok()
            })
            .collect();
        assert_eq!(told, [false, false, true, false, false]);
    }

    /// A request that the driver makes available just after the ring was found empty is
    /// found the next time, and nothing is broken.
    #[test]
    fn driver_may_add_requests_while_the_device_looks() {
        const REQUESTS: u32 = 5_000;
        let memory = allocate(1, HugePages::None, false).unwrap();
        let mut driver = TestDriver::new(&memory, RINGS);
        let buffer = RawDescriptor {
            address: 0x2_0000,
            length: 16,
            flags: 0,
            next: 0,
        };
        driver.write_descriptors(&[buffer]);
        let mut queue = driver.queue(0);
        let taken = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for published in 0..REQUESTS {
                    // Nearly always empty, which is when it matters.
                    while taken.load(Ordering::Acquire) < published {
                        std::thread::yield_now();
                    }
                    driver.publish(0);
                }
            });
            while taken.load(Ordering::Relaxed) < REQUESTS {
                match queue.pop(&memory) {
                    Ok(Some(_)) => drop(taken.fetch_add(1, Ordering::Release)),
                    Ok(None) => std::thread::yield_now(),
                    Err(error) => {
                        // Lets the driver's thread come to its end.
                        taken.store(REQUESTS, Ordering::Release);
                        panic!("{error}");
                    }
                }
            }
        });
    }

    #[test]
    fn state_survives_the_round_trip() {
        let memory = allocate(1, HugePages::None, false).unwrap();
        let mut driver = TestDriver::new(&memory, RINGS);
        driver.request(&[(0x2_0000, 16, 0)]);
        let mut queue = driver.queue(0);
        let chain = queue.pop(&memory).unwrap().unwrap();
        queue.add_used(&memory, chain.head, 7).unwrap();
        let state = queue.state();
        let text = serde_json::to_string(&state).unwrap();
        let restored = VirtQueue::restore(0, serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(restored.state(), state);
        assert_eq!((state.next_available, state.next_used), (1, 1));
    }
}
