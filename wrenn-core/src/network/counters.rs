//! How much a sandbox has sent and received.

use super::host::Host;
use super::link::LinkError;

/// Traffic in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Ethernet frames without their checksums.
    pub bytes: u64,
    /// Frames. What the kernel handed on as one, it counts as one.
    pub packets: u64,
}

/// What crossed between a slot and the host since the slot was made. What the slot refused
/// its guest is not in here. The kernel counts: an adopted slot goes on from where it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounters {
    /// From the sandbox.
    pub sent: Traffic,
    /// To the sandbox.
    pub received: Traffic,
}

/// Why a slot's counters could not be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum CountError {
    #[error("cannot read the counters of the slot's link")]
    Link(#[from] LinkError),
    #[error("a worker thread died")]
    Thread,
}

impl SlotCounters {
    /// Reads the `IFLA_STATS64` of the host's end of a slot's veth pair: what that has
    /// received, the sandbox has sent.
    pub(super) fn read(host: &Host, link: &str) -> Result<Self, CountError> {
        let counted = host.with_links(|links| links.statistics_of(link))?;
        Ok(Self {
            sent: Traffic {
                bytes: counted.rx_bytes,
                packets: counted.rx_packets,
            },
            received: Traffic {
                bytes: counted.tx_bytes,
                packets: counted.tx_packets,
            },
        })
    }
}
