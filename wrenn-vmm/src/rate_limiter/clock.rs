//! Where the time comes from.

use std::fmt::Debug;
use std::time::Instant;

/// A clock that never goes back.
pub trait Clock: Debug + Send {
    /// The time.
    fn now(&self) -> Instant;
}

/// The host's monotonic clock, which timers follow too.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that a test advances.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(crate) struct ManualClock(std::sync::Arc<std::sync::Mutex<Instant>>);

#[cfg(test)]
impl ManualClock {
    pub(crate) fn new() -> Self {
        Self(std::sync::Arc::new(std::sync::Mutex::new(Instant::now())))
    }

    pub(crate) fn advance(&self, time: std::time::Duration) {
        *crate::sync::lock(&self.0) += time;
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn now(&self) -> Instant {
        *crate::sync::lock(&self.0)
    }
}
