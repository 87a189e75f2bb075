//! A token bucket: a burst at once, then a steady rate. What a guest can trigger without
//! limit (console output, log lines) is paid from one.

use std::time::Instant;

/// The bucket. It starts full.
#[derive(Debug)]
pub struct Budget {
    capacity: u64,
    /// Tokens a second.
    rate: u64,
    tokens: u64,
    refilled: Instant,
}

impl Budget {
    /// A full bucket of `capacity` tokens that gains `rate` tokens a second.
    pub const fn new(capacity: u64, rate: u64, now: Instant) -> Self {
        Self {
            capacity,
            rate,
            tokens: capacity,
            refilled: now,
        }
    }

    /// Takes `count` tokens if they are all there.
    pub fn take(&mut self, count: u64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled);
        let gained = elapsed.as_nanos() * u128::from(self.rate) / 1_000_000_000;
        let gained = u64::try_from(gained).unwrap_or(u64::MAX);
        // Time too short for a whole token stays on the clock, or a busy guest would
        // never earn one.
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(self.capacity);
            self.refilled = now;
        }
        let enough = self.tokens >= count;
        if enough {
            self.tokens -= count;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_then_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(10, 2, start);
        assert!(budget.take(10, start));
        assert!(!budget.take(1, start));
        assert!(!budget.take(1, start + Duration::from_millis(499)));
        assert!(budget.take(1, start + Duration::from_millis(500)));
        assert!(!budget.take(11, start + Duration::from_secs(3600)));
        assert!(budget.take(10, start + Duration::from_secs(3600)));
    }

    #[test]
    fn frequent_asking_does_not_starve() {
        let start = Instant::now();
        let mut budget = Budget::new(1, 1, start);
        assert!(budget.take(1, start));
        let granted = (1..=10_000u64)
            .filter(|step| budget.take(1, start + Duration::from_millis(*step)))
            .count();
        assert_eq!(granted, 10);
    }
}
