//! Limits how many bytes and requests a second a device's queue handles.
//!
//! ```text
//!         ┌──── a request passes: tokens taken ────┐
//!         ▼                                        │
//!       open ──── a request lacks tokens: timer armed ────▶ throttled
//!         ▲                                                    │
//!         └── time is over (the timer wakes the queue), PATCH, ┘
//!             or the driver's reset
//! ```
//!
//! A request that lacks tokens stays in its queue, so that a throttled device keeps nothing
//! that a snapshot would have to know. The tokens of a device outlive the driver's reset, or
//! a guest could have a full bucket as often as it likes.

mod clock;
pub mod token_bucket;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use crate::config::{RateLimiterConfig, TokenBucketConfig};
pub use clock::{Clock, MonotonicClock};
use token_bucket::TokenBucket;

/// The shortest time that a queue waits: what a guest asks for costs the host no more wakeups
/// than this allows. It loses no tokens, since no bucket fills in less.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// Two token buckets, each of which may be absent, and the timer that ends the waiting.
#[derive(Debug)]
pub struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
    /// When the queue may go on.
    throttled_until: Option<Instant>,
    /// Made even where there is no limit: a later PATCH may set one, and the seccomp filter
    /// allows no new timer then.
    timer: TimerFd,
    clock: Box<dyn Clock>,
}

impl RateLimiter {
    /// A limiter with full buckets.
    ///
    /// # Errors
    /// If the kernel has no timer for us.
    pub fn new(config: Option<RateLimiterConfig>, clock: impl Clock + 'static) -> io::Result<Self> {
        let mut limiter = Self {
            bandwidth: None,
            ops: None,
            throttled_until: None,
            timer: TimerFd::new().map_err(io::Error::from)?,
            clock: Box::new(clock),
        };
        if let Some(config) = config {
            limiter.update(config);
        }
        Ok(limiter)
    }

    /// Becomes readable (by edge) when a throttled queue may go on. It need not be read.
    pub fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Replaces the buckets that are present in `config` by full ones, or by none where a size
    /// or time is zero. The caller has to wake the queue.
    pub fn update(&mut self, config: RateLimiterConfig) {
        let now = self.clock.now();
        let replace = |bucket: &mut Option<TokenBucket>, config: Option<TokenBucketConfig>| {
            if let Some(config) = config {
                *bucket = TokenBucket::new(config, now);
            }
        };
        replace(&mut self.bandwidth, config.bandwidth);
        replace(&mut self.ops, config.ops);
        self.disarm();
    }

    /// Whether the queue has to wait.
    pub fn is_throttled(&mut self) -> bool {
        match self.throttled_until {
            Some(until) if self.clock.now() < until => true,
            _ => {
                self.throttled_until = None;
                false
            }
        }
    }

    /// Whether one request of `bytes` may pass. If not, the timer is armed for when it may.
    pub fn admits(&mut self, bytes: u64) -> bool {
        if self.is_throttled() {
            return false;
        }
        if self.bandwidth.is_none() && self.ops.is_none() {
            return true;
        }
        let now = self.clock.now();
        let delay = |bucket: &mut Option<TokenBucket>, tokens| {
            bucket
                .as_mut()
                .map_or(Duration::ZERO, |bucket| bucket.delay(tokens, now))
        };
        let delay = delay(&mut self.bandwidth, bytes).max(delay(&mut self.ops, 1));
        if delay.is_zero() {
            return true;
        }
        self.wait(now, delay.max(WAIT_MIN));
        false
    }

    /// Takes the tokens of one request of `bytes` that was admitted, even if it became larger.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.take(1);
        }
    }

    /// Takes the tokens of one request of `bytes` if it may pass.
    pub fn consume(&mut self, bytes: u64) -> bool {
        let admitted = self.admits(bytes);
        if admitted {
            self.charge(bytes);
        }
        admitted
    }

    /// Waits for no tokens any more.
    pub fn disarm(&mut self) {
        if self.throttled_until.take().is_some()
            && let Err(error) = self.timer.clear()
        {
            log::error!("cannot disarm the timer of a rate limiter: {error}");
        }
    }

    fn wait(&mut self, now: Instant, delay: Duration) {
        match self.timer.reset(delay, None) {
            Ok(()) => self.throttled_until = now.checked_add(delay),
            Err(error) => log::error!("cannot arm the timer of a rate limiter: {error}"),
        }
    }

    /// Whether the timer is going to wake the queue.
    #[cfg(test)]
    pub(crate) fn is_armed(&self) -> bool {
        self.timer.is_armed().unwrap()
    }
}

#[cfg(test)]
pub(crate) use clock::ManualClock;
#[cfg(test)]
mod tests;
