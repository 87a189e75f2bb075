//! Virtio devices (specification 1.2) behind the memory-mapped transport.
//!
//! ```text
//!            registers (rare, vCPU thread)
//! guest ───────────────────────────────▶ MmioTransport ─▶ VirtioDevice
//!   │  notify: ioeventfd ─▶ event loop ──────▶ process() ──▶ queues in guest memory
//!   ◀── interrupt: irqfd ─────────────────────────┘
//! ```
//!
//! A device owns plain state only. The transport owns the queues and hands them to the
//! device together with the memory, under one lock, so that pausing and saving a device
//! means holding that lock.

pub mod balloon;
pub mod block;
pub mod interrupt;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(test)]
mod test_queue;
pub mod transport;

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::memory::GuestMemory;
use interrupt::Interrupt;
use queue::VirtQueue;

/// The device follows specification 1.0 or later (`VIRTIO_F_VERSION_1`).
pub const FEATURE_VERSION_1: u64 = 1 << 32;
/// Notifications are suppressed by index (`VIRTIO_F_EVENT_IDX`).
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;

/// Device types (specification 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    /// Network interface.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Entropy source.
    Entropy = 4,
    /// Memory balloon.
    Balloon = 5,
}

/// What made [`VirtioDevice::process`] run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The guest put buffers into this queue, or a throttled one may go on.
    Queue(usize),
    /// The descriptor that the device listens to besides became ready.
    Backend,
}

/// How far [`VirtioDevice::process`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do.
    Done,
    /// This queue has more, but others shall have their turn first.
    More(usize),
}

/// The guest broke the protocol so that the device cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the guest's queue {queue} is broken: {reason}")]
pub struct QueueBroken {
    /// Which queue.
    pub queue: usize,
    /// In which way.
    pub reason: String,
}

/// Whether a device is to let go of what it works on. It is set by another thread, and without
/// the device's lock, which the device may hold for long.
#[derive(Debug, Default)]
pub struct StopFlag(AtomicBool);

impl StopFlag {
    /// Sets it, or clears it.
    pub fn set(&self, stop: bool) {
        self.0.store(stop, Ordering::Release);
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Everything that an active device works with.
pub struct Active<'a> {
    /// Its queues, all valid and ready.
    pub queues: &'a mut [VirtQueue],
    /// Guest memory.
    pub memory: &'a GuestMemory,
    /// How to tell the guest.
    pub interrupt: &'a Interrupt,
    /// What driver and device agreed on.
    pub features: u64,
    /// Set when a request that takes long is to be put back into its queue.
    pub stop: &'a StopFlag,
}

/// A virtio device without its transport.
pub trait VirtioDevice: Send {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> &'static [u16];

    /// How many of its queues, from the first on, a driver uses that accepted `features`.
    fn queues_needed(&self, _features: u64) -> usize {
        self.queue_sizes().len()
    }

    /// What it offers, without the transport's own features.
    fn features(&self) -> u64;

    /// Its configuration space.
    fn configuration(&self) -> &[u8];

    /// A descriptor, if any, whose readiness (edge-triggered) makes [`Self::process`] run.
    fn backend(&self) -> Option<RawFd> {
        None
    }

    /// Timers, each with the queue that [`Self::process`] runs for when it expires
    /// (edge-triggered).
    fn timers(&self) -> Vec<(RawFd, usize)> {
        Vec::new()
    }

    /// The driver is ready.
    fn activate(&mut self, features: u64);

    /// The driver went away.
    fn reset(&mut self) {}

    /// Nothing is processed from now on: puts back what was taken from the queues and is
    /// not used yet, so that they tell all there is to know.
    fn pause(&mut self, _queues: &mut [VirtQueue]) {}

    /// Does what `cause` asks for.
    ///
    /// # Errors
    /// If the guest broke a queue; the device then stops until the driver resets it.
    fn process(&mut self, cause: Cause, active: &mut Active<'_>) -> Result<Progress, QueueBroken>;
}
