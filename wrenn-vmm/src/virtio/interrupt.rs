//! The interrupt of one virtio device.

use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A queue has used buffers (specification 1.2, section 4.2.2, `InterruptStatus`).
const STATUS_QUEUE: u32 = 1;
/// The configuration changed.
const STATUS_CONFIGURATION: u32 = 2;

/// The status register and the line. The guest's interrupt handler reads the register
/// on its hot path, so it is outside every lock.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt on `line`, which an irqfd connects to the guest.
    pub fn new(line: EventFd) -> Self {
        Self {
            status: AtomicU32::new(0),
            line,
        }
    }

    /// The event that raises the line.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Tells the guest that a queue has used buffers.
    pub fn notify_queue(&self) {
        self.raise(STATUS_QUEUE);
    }

    /// Tells the guest that the configuration changed.
    pub fn notify_configuration(&self) {
        self.raise(STATUS_CONFIGURATION);
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.pulse();
    }

    /// Raises the line for whatever the status register holds.
    pub fn pulse(&self) {
        // Fails only if the counter is about to overflow, and then the line is up anyway.
        if let Err(error) = self.line.write(1) {
            log::debug!("interrupt line: {error}");
        }
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Restores the status register.
    pub fn set_status(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// The guest has seen these.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }
}
