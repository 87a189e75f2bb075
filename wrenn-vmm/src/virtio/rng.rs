//! Entropy source (specification 1.2, section 5.4): the host's generator.

use crate::memory::GuestMemory;
use crate::metrics::METRICS;
use crate::sys;
use crate::virtio::queue::{Chain, in_memory};
use crate::virtio::{Active, Cause, DeviceType, Progress, QueueBroken, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

const QUEUE_SIZES: &[u16] = &[256];
/// The most bytes that one request gets, as Firecracker has it; a driver that wants more
/// asks again.
const BYTES_MAX: usize = 64 << 10;
/// Requests before other devices get their turn.
const BATCH: usize = 16;

/// The device.
#[derive(Debug, Default)]
pub struct Entropy;

impl Entropy {
    /// Fills the writable buffers and says how many bytes those were.
    fn serve(chain: &Chain, memory: &GuestMemory) -> u32 {
        let mut left = BYTES_MAX;
        let mut written = 0u32;
        let usable = chain
            .descriptors
            .iter()
            .filter(|descriptor| descriptor.is_write_only());
        for descriptor in usable {
            // Pieces, so that no request makes the VMM hold 64 KiB.
            let mut piece = [0u8; 256];
            let mut offset = 0u64;
            let mut wanted = left.min(descriptor.len() as usize);
            if !in_memory(memory, descriptor) {
                break;
            }
            while wanted > 0 {
                let part = &mut piece[..wanted.min(256)];
                if let Err(error) = sys::random::fill(part) {
                    log::warn!("no random bytes for the guest: {error}");
                    return written;
                }
                let address = GuestAddress(descriptor.addr().0 + offset);
                if memory.write_slice(part, address).is_err() {
                    return written;
                }
                offset += part.len() as u64;
                left -= part.len();
                wanted -= part.len();
                written += u32::try_from(part.len()).unwrap_or(0);
            }
        }
        METRICS.entropy.bytes.add(u64::from(written));
        written
    }
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn configuration(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, _features: u64) {}

    fn process(&mut self, _cause: Cause, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        let [queue] = active.queues else {
            return Ok(Progress::Done);
        };
        queue.serve(active.memory, active.interrupt, BATCH, |chain| {
            Some(Self::serve(chain, active.memory))
        })
    }
}
