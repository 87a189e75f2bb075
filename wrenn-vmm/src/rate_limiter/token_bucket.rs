//! A token bucket with Firecracker's parameters: it starts full, may hold a burst that is
//! spent once, and fills in a given time.
//!
//! ```text
//! level   size ┬─ full: gains no more
//!              │    a request of up to `size` tokens passes where the level covers it
//!            0 ┼─ empty
//!              │    a larger request passes here or above and takes the level below zero
//!         debt ┴─ no request passes before it is paid
//! ```
//!
//! So a request of any size passes at some time, and within any time that the bucket is
//! watched no more passes than its size, its burst, the refill of that time and one request.
//! (In Firecracker the time that pays a debt fills the bucket as well.)

use std::time::{Duration, Instant};

use crate::config::TokenBucketConfig;

const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

/// The bucket. Its level is counted in parts of a token, of which each nanosecond earns as many
/// as the bucket has tokens, so that no fraction is ever lost.
#[derive(Debug)]
pub struct TokenBucket {
    /// Tokens of a full bucket, and the parts that a nanosecond earns.
    size: u128,
    /// Nanoseconds that an empty bucket takes to fill, and the parts of one token.
    refill: u128,
    /// Tokens.
    burst: u128,
    /// Parts below a full bucket; more than a full bucket has is debt.
    missing: u128,
    refilled: Instant,
}

impl TokenBucket {
    /// A full bucket, or none if the configuration means that there is no limit.
    pub fn new(config: TokenBucketConfig, now: Instant) -> Option<Self> {
        // 584 years, with which no product below overflows.
        let refill = config
            .refill_time
            .saturating_mul(NANOSECONDS_PER_MILLISECOND);
        config.is_limit().then(|| Self {
            size: config.size.into(),
            refill: refill.into(),
            burst: config.one_time_burst.unwrap_or(0).into(),
            missing: 0,
            refilled: now,
        })
    }

    /// How long it takes until a request of `tokens` may pass; zero if it may now.
    pub fn delay(&mut self, tokens: u64, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.refilled).as_nanos();
        self.missing = self
            .missing
            .saturating_sub(elapsed.saturating_mul(self.size));
        self.refilled = now;

        let tokens = u128::from(tokens).saturating_sub(self.burst);
        let allowed = if tokens > self.size {
            self.size * self.refill
        } else {
            (self.size - tokens) * self.refill
        };
        let nanoseconds = self.missing.saturating_sub(allowed).div_ceil(self.size);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Takes the tokens of a request that has passed, even those that are not there.
    pub fn take(&mut self, tokens: u64) {
        let tokens = u128::from(tokens);
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        let parts = (tokens - from_burst) * self.refill;
        self.missing = self.missing.saturating_add(parts);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(size: u64, burst: u64, refill_time: u64, now: Instant) -> TokenBucket {
        let config = TokenBucketConfig {
            size,
            one_time_burst: Some(burst),
            refill_time,
        };
        TokenBucket::new(config, now).unwrap()
    }

    #[test]
    fn burst_is_spent_once() {
        let start = Instant::now();
        let mut bucket = bucket(10, 5, 1000, start);
        assert_eq!(bucket.delay(15, start), Duration::ZERO);
        bucket.take(15);
        assert_eq!(bucket.delay(1, start), Duration::from_millis(100));
        assert_eq!(bucket.delay(10, start), Duration::from_secs(1));
        let later = start + Duration::from_secs(3600);
        bucket.delay(1, later);
        bucket.take(10);
        assert_eq!(bucket.delay(1, later), Duration::from_millis(100));
    }

    #[test]
    fn request_beyond_size_leaves_debt() {
        let start = Instant::now();
        let mut bucket = bucket(10, 0, 1000, start);
        assert_eq!(bucket.delay(100, start), Duration::ZERO);
        bucket.take(100);
        assert_eq!(bucket.delay(100, start), Duration::from_secs(9));
        assert_eq!(bucket.delay(1, start), Duration::from_millis(9100));
        let later = start + Duration::from_millis(9100);
        assert_eq!(bucket.delay(1, later), Duration::ZERO);
    }

    #[test]
    fn frequent_requests_earn_whole_tokens() {
        let start = Instant::now();
        let mut bucket = bucket(3, 0, 1000, start);
        bucket.take(3);
        let passed = (1..=10_000u64)
            .filter(|step| {
                let passes = bucket
                    .delay(1, start + Duration::from_millis(*step))
                    .is_zero();
                if passes {
                    bucket.take(1);
                }
                passes
            })
            .count();
        assert_eq!(passed, 30);
    }

    #[test]
    fn bucket_without_size_or_time_is_none() {
        for (size, refill_time) in [(0, 1), (1, 0), (0, 0)] {
            let config = TokenBucketConfig {
                size,
                one_time_burst: Some(7),
                refill_time,
            };
            assert!(TokenBucket::new(config, Instant::now()).is_none());
        }
    }

    #[test]
    fn extreme_parameters_do_not_overflow() {
        let start = Instant::now();
        let mut bucket = bucket(u64::MAX, u64::MAX, u64::MAX, start);
        bucket.take(u64::MAX);
        bucket.take(u64::MAX);
        assert!(bucket.delay(u64::MAX, start) > Duration::from_secs(1 << 32));
        bucket.take(u64::MAX);
        bucket.delay(1, start + Duration::from_secs(1 << 32));
    }

    proptest! {
        #[test]
        fn any_window_is_bounded(
            size in 1..5_000u64,
            burst in 0..2_000u64,
            refill_time in 1..3_000u64,
            steps in proptest::collection::vec(
                (0..2_000_000_000u64, prop_oneof![1..100u64, 1..20_000u64]),
                1..60,
            ),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = bucket(size, burst, refill_time, start);
            let mut passed: Vec<(Instant, u64)> = Vec::new();
            for (pause, tokens) in steps {
                now += Duration::from_nanos(pause);
                let delay = bucket.delay(tokens, now);
                if !delay.is_zero() {
                    // The announced time is enough, and no less is.
                    let early = delay - Duration::from_nanos(1);
                    prop_assert!(!bucket.delay(tokens, now + early).is_zero());
                    prop_assert!(bucket.delay(tokens, now + delay).is_zero());
                    now += delay;
                }
                bucket.take(tokens);
                passed.push((now, tokens));
            }
            let largest = passed.iter().map(|(_, tokens)| *tokens).max().unwrap_or(0);
            for first in 0..passed.len() {
                let mut total = 0u128;
                for (at, tokens) in &passed[first..] {
                    total += u128::from(*tokens);
                    let nanoseconds = at.duration_since(passed[first].0).as_nanos();
                    let refill = u128::from(refill_time * NANOSECONDS_PER_MILLISECOND);
                    let gained = (nanoseconds * u128::from(size)).div_ceil(refill);
                    let bound = u128::from(size) + u128::from(burst) + gained
                        + u128::from(largest);
                    prop_assert!(total <= bound, "{total} > {bound}");
                }
            }
        }
    }
}
