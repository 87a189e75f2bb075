//! Memory balloon (specification 1.2, section 5.5), for free page reporting alone.
//!
//! ```text
//! guest   a block of free pages comes about ─▶ reporting queue ┄ waits ┄▶ may use it again
//! here                                            discard: zero from now on, room for others
//! ```
//!
//! A guest that has freed memory keeps what was in it, and so would every snapshot: what a
//! program that has ended once held would be written at each pause and read by each
//! resume. Linux reports blocks of 2 MiB and more, every two seconds, and does not use one
//! while it is being reported. It takes what it reported for uninitialised, and does not
//! report at all if it relies on the contents of free pages, so that a block that cannot be
//! discarded is no error.
//!
//! The host never asks for memory back, so that nothing is expected in the queues to
//! inflate and to deflate; whatever comes there is given back unused.

use vm_memory::GuestAddress;

use crate::config::BalloonConfig;
use crate::memory::GuestMemory;
use crate::memory::discard::Discarder;
use crate::metrics::METRICS;
use crate::virtio::queue::Chain;
use crate::virtio::{Active, Cause, DeviceType, Progress, QueueBroken, StopFlag, VirtioDevice};

const QUEUE_SIZES: [u16; 3] = [256; 3];
/// Where free pages are reported: third, since statistics and hints are not offered.
const REPORTING: usize = 2;
/// The driver may take pages back without being asked when its memory is short
/// (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`).
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
/// The driver may report free pages (`VIRTIO_BALLOON_F_REPORTING`).
const FEATURE_REPORTING: u64 = 1 << 5;
/// How many pages the balloon is to hold and holds: none.
const CONFIGURATION: [u8; 8] = [0; 8];
/// Requests before the device looks whether it is to pause. Linux reports 32 blocks in one.
const BATCH: usize = 4;

/// The device.
#[derive(Debug)]
pub struct Balloon {
    features: u64,
    queues: &'static [u16],
    discarder: Discarder,
}

impl Balloon {
    /// A balloon that has reported pages given back by `discarder`.
    pub fn new(config: &BalloonConfig, discarder: Discarder) -> Self {
        let feature = |asked: bool, bit: u64| if asked { bit } else { 0 };
        let queues = if config.free_page_reporting {
            &QUEUE_SIZES[..]
        } else {
            &QUEUE_SIZES[..REPORTING]
        };
        Self {
            features: feature(config.deflate_on_oom, FEATURE_DEFLATE_ON_OOM)
                | feature(config.free_page_reporting, FEATURE_REPORTING),
            queues,
            discarder,
        }
    }

    /// Discards what is reported, unless it is to stop: then all of it is discarded again, which
    /// does no harm, since the guest waits with its use until it is told.
    fn discard(&mut self, chain: &Chain, memory: &GuestMemory, stop: &StopFlag) -> Option<()> {
        let metrics = &METRICS.balloon;
        let reported = chain
            .descriptors
            .iter()
            .filter(|descriptor| descriptor.is_write_only());
        for descriptor in reported {
            if stop.is_set() {
                return None;
            }
            metrics.reports.add(1);
            let length = descriptor.len() as usize;
            let start = GuestAddress(descriptor.addr().0);
            match self.discarder.discard(memory, start, length) {
                Ok(()) => metrics.discarded_bytes.add(length as u64),
                Err(error) => {
                    metrics.failures.add(1);
                    log::debug!("{length} bytes at {:#x} stay: {error}", start.0);
                }
            }
        }
        Some(())
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn queue_sizes(&self) -> &'static [u16] {
        self.queues
    }

    /// A driver that reports nothing has no queue for it.
    fn queues_needed(&self, features: u64) -> usize {
        if features & FEATURE_REPORTING == 0 {
            REPORTING
        } else {
            self.queues.len()
        }
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn configuration(&self) -> &[u8] {
        &CONFIGURATION
    }

    fn activate(&mut self, _features: u64) {}

    fn process(&mut self, cause: Cause, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        let Cause::Queue(index) = cause else {
            return Ok(Progress::Done);
        };
        let Some(queue) = active
            .queues
            .get_mut(index)
            .filter(|queue| queue.is_ready())
        else {
            return Ok(Progress::Done);
        };
        queue.serve(active.memory, active.interrupt, BATCH, |chain| {
            if index == REPORTING {
                self.discard(chain, active.memory, active.stop)?;
            }
            Some(0)
        })
    }
}

#[cfg(test)]
mod tests;
