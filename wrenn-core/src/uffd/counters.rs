//! What a pager counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a pager has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Faults that were reported and resolved.
    pub faults: u64,
    /// Calls that filled pages on behalf of faults.
    pub bursts: u64,
    /// Bytes brought from files, prefetched ones included.
    pub copied_bytes: u64,
    /// Bytes that were filled with zeros, prefetched ones included.
    pub zeroed_bytes: u64,
    /// Bytes that were brought before anybody asked.
    pub prefetched_bytes: u64,
    /// Bytes that the VM has given up, as a balloon does.
    pub removed_bytes: u64,
    /// Pages that another worker had brought first.
    pub already_present: u64,
    /// How often a call had to be made again, because the VMM was changing its mappings.
    pub retries: u64,
    /// From the report of a fault to its end: the middle, in microseconds, rounded up to
    /// an eighth.
    pub latency_p50_us: u64,
    /// Of a hundred faults, one took longer.
    pub latency_p99_us: u64,
    /// The longest.
    pub latency_max_us: u64,
}

/// Eight buckets for each power of two: nanoseconds up to hours.
const BUCKETS: usize = 8 * 48;

#[derive(Debug)]
pub(super) struct Tally {
    pub(super) faults: AtomicU64,
    pub(super) bursts: AtomicU64,
    pub(super) copied: AtomicU64,
    pub(super) zeroed: AtomicU64,
    pub(super) prefetched: AtomicU64,
    pub(super) removed: AtomicU64,
    pub(super) present: AtomicU64,
    pub(super) retries: AtomicU64,
    latencies: [AtomicU64; BUCKETS],
    longest: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            faults: AtomicU64::default(),
            bursts: AtomicU64::default(),
            copied: AtomicU64::default(),
            zeroed: AtomicU64::default(),
            prefetched: AtomicU64::default(),
            removed: AtomicU64::default(),
            present: AtomicU64::default(),
            retries: AtomicU64::default(),
            latencies: [const { AtomicU64::new(0) }; BUCKETS],
            longest: AtomicU64::default(),
        }
    }
}

pub(super) fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn resolved(&self, took: Duration) {
        add(&self.faults, 1);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.latencies.get(bucket(nanoseconds)) {
            add(bucket, 1);
        }
        self.longest.fetch_max(nanoseconds, Ordering::Relaxed);
    }

    pub(super) fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let histogram: Vec<u64> = self.latencies.iter().map(read).collect();
        let longest = read(&self.longest);
        let percentile = |of_hundred| {
            let nanoseconds = percentile(&histogram, of_hundred).min(longest);
            nanoseconds.div_ceil(1000)
        };
        Counters {
            faults: read(&self.faults),
            bursts: read(&self.bursts),
            copied_bytes: read(&self.copied),
            zeroed_bytes: read(&self.zeroed),
            prefetched_bytes: read(&self.prefetched),
            removed_bytes: read(&self.removed),
            already_present: read(&self.present),
            retries: read(&self.retries),
            latency_p50_us: percentile(50),
            latency_p99_us: percentile(99),
            latency_max_us: longest.div_ceil(1000),
        }
    }
}

/// Below eight, each number has its own; above, the highest bit and the three after it.
fn bucket(number: u64) -> usize {
    let exponent = number.max(1).ilog2().saturating_sub(3);
    let index = u64::from(exponent) * 8 + (number >> exponent);
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The first number that is beyond a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 16 {
        return bucket + 1;
    }
    let exponent = bucket / 8 - 1;
    (bucket % 8 + 9) << exponent
}

fn percentile(histogram: &[u64], of_hundred: u64) -> u64 {
    let all: u64 = histogram.iter().sum();
    let mut below = 0;
    for (bucket, count) in histogram.iter().enumerate() {
        below += count;
        if below * 100 >= all * of_hundred && below > 0 {
            return upper_bound(bucket);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_narrow() {
        let mut last = 0;
        for number in (0..100_000u64).chain((17..40).map(|bit| 1 << bit)) {
            let index = bucket(number);
            assert!(index >= last, "{number}");
            last = index;
            let bound = upper_bound(index);
            assert!(bound > number, "{number} in bucket {index} up to {bound}");
            assert!(bound - number <= number / 8 + 1, "{number} up to {bound}");
        }
    }

    #[test]
    fn percentiles() {
        let tally = Tally::default();
        for microseconds in 1..=100 {
            tally.resolved(Duration::from_micros(microseconds));
        }
        let counters = tally.counters();
        assert_eq!(counters.faults, 100);
        assert!((50..=57).contains(&counters.latency_p50_us), "{counters:?}");
        assert!(
            (99..=100).contains(&counters.latency_p99_us),
            "{counters:?}"
        );
        assert_eq!(counters.latency_max_us, 100);
        assert_eq!(Tally::default().counters(), Counters::default());
    }
}
