//! Watching how full a store is, so that its sandbox is paused before a write finds no room.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::disk::DiskStatusError;
use super::shared::{Shared, blocking};
use super::table::StoreStatus;
use crate::SandboxId;

/// The share of a store at which a sandbox is paused unless told otherwise.
pub const DEFAULT_FILL_LIMIT_PERCENT: u8 = 90;

/// Why a sandbox cannot go on writing to its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The store is filled to the limit or beyond. Nothing is lost yet.
    Filling {
        /// Used share in percent.
        used_percent: u8,
    },
    /// A write found no room. It failed, and so do all that follow; the rest can be read.
    Overflow,
    /// The kernel lost track of the store: the disk cannot be read any more.
    Invalid,
}

/// The alarm that a status gives; `limit_percent` is `None` where the store cannot fill.
const fn alarm(status: &StoreStatus, used: u8, limit_percent: Option<u8>) -> Option<Alarm> {
    match (status, limit_percent) {
        (StoreStatus::Invalid, _) => Some(Alarm::Invalid),
        (StoreStatus::Overflow, _) => Some(Alarm::Overflow),
        (StoreStatus::Active { .. }, Some(limit)) if used >= limit => {
            Some(Alarm::Filling { used_percent: used })
        }
        (StoreStatus::Active { .. }, _) => None,
    }
}

pub(super) async fn watch(
    shared: Arc<Shared>,
    id: SandboxId,
    limit_percent: Option<u8>,
    interval: Duration,
) -> Result<Alarm, DiskStatusError> {
    // An interval of nothing would panic.
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (shared, id) = (Arc::clone(&shared), id.clone());
        let status = blocking(move || shared.status(&id)).await??;
        if let Some(alarm) = alarm(&status, status.used_percent(), limit_percent) {
            return Ok(alarm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(used_sectors: u64) -> StoreStatus {
        StoreStatus::Active {
            used_sectors,
            total_sectors: 1000,
            metadata_sectors: 16,
        }
    }

    #[test]
    fn the_limit_counts_only_where_a_store_can_fill() {
        let of = |status: StoreStatus, limit| alarm(&status, status.used_percent(), limit);
        assert_eq!(of(active(899), Some(90)), None);
        assert_eq!(
            of(active(900), Some(90)),
            Some(Alarm::Filling { used_percent: 90 })
        );
        assert_eq!(of(active(1000), None), None);
        for limit in [None, Some(90)] {
            assert_eq!(of(StoreStatus::Overflow, limit), Some(Alarm::Overflow));
            assert_eq!(of(StoreStatus::Invalid, limit), Some(Alarm::Invalid));
        }
    }
}
