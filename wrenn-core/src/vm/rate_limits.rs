//! How fast the devices of a sandbox are, as a host sets it and as a VMM is told.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// How fast the devices of each sandbox are. No limit unless set.
///
/// The VMM holds them, so that they count wherever the disk lies and whatever comes from the
/// host's page cache, which the limits of a cgroup do not see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Reads and writes of the drive, together.
    pub drive: RateLimit,
    /// Packets to the guest, and the same again for those from it.
    pub network: RateLimit,
}

/// How much a device handles in a second. No limit unless set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// MiB.
    pub mib_per_second: Option<NonZeroU32>,
    /// Requests of a drive, packets of a network interface.
    pub operations_per_second: Option<NonZeroU32>,
}

/// A limit in a VMM's API. One that a snapshot brought along is lifted by a bucket without size,
/// so that both buckets are always there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiter {
    /// Bytes.
    pub bandwidth: TokenBucket,
    /// Requests or packets.
    pub ops: TokenBucket,
}

/// A token bucket in a VMM's API; one of size 0 limits nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// Tokens when it is full.
    pub size: u64,
    /// Milliseconds until an empty one is full.
    pub refill_time: u64,
}

impl TokenBucket {
    /// One that holds as much as a second brings.
    const fn per_second(tokens: u64) -> Self {
        Self {
            size: tokens,
            refill_time: 1000,
        }
    }
}

impl From<RateLimit> for RateLimiter {
    fn from(limit: RateLimit) -> Self {
        let tokens = |limit: Option<NonZeroU32>| limit.map_or(0, |limit| limit.get().into());
        Self {
            bandwidth: TokenBucket::per_second(tokens(limit.mib_per_second) << 20),
            ops: TokenBucket::per_second(tokens(limit.operations_per_second)),
        }
    }
}

/// Body of `PATCH /drives/{id}`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DriveUpdate {
    pub(super) drive_id: &'static str,
    pub(super) rate_limiter: RateLimiter,
}

/// Body of `PATCH /network-interfaces/{id}`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NetworkInterfaceUpdate {
    pub(super) iface_id: &'static str,
    pub(super) rx_rate_limiter: RateLimiter,
    pub(super) tx_rate_limiter: RateLimiter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limiter_has_one_second_buckets() {
        let limit = RateLimit {
            mib_per_second: NonZeroU32::new(3),
            operations_per_second: None,
        };
        assert_eq!(
            serde_json::to_value(RateLimiter::from(limit)).unwrap(),
            serde_json::json!({
                "bandwidth": {"size": 3 << 20, "refill_time": 1000},
                "ops": {"size": 0, "refill_time": 1000},
            })
        );
    }

    #[test]
    fn largest_limit_does_not_overflow() {
        let limit = RateLimit {
            mib_per_second: NonZeroU32::new(u32::MAX),
            operations_per_second: NonZeroU32::new(u32::MAX),
        };
        let limiter = RateLimiter::from(limit);
        assert_eq!(limiter.bandwidth.size, u64::from(u32::MAX) << 20);
    }
}
