//! Time that a test can advance, and the idle time of a sandbox.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The host's clock: the real one, and what the test added.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock(Arc<Mutex<Duration>>);

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        Instant::now() + *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

/// When a sandbox was used last. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    uses: Mutex<Uses>,
}

#[derive(Debug)]
struct Uses {
    last: Instant,
    open: usize,
}

impl Activity {
    pub(crate) fn new(clock: Clock) -> Self {
        let uses = Mutex::new(Uses {
            last: clock.now(),
            open: 0,
        });
        Self(Arc::new(Inner { clock, uses }))
    }

    pub(crate) fn touch(&self) {
        self.uses().last = self.0.clock.now();
    }

    pub(crate) fn idle(&self) -> Duration {
        let uses = self.uses();
        if uses.open > 0 {
            return Duration::ZERO;
        }
        self.0.clock.now().saturating_duration_since(uses.last)
    }

    /// The sandbox counts as used until the guard is dropped.
    pub(crate) fn in_use(&self) -> InUse {
        self.uses().open += 1;
        InUse(self.clone())
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.0.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A use that goes on.
#[derive(Debug)]
pub(crate) struct InUse(Activity);

impl Drop for InUse {
    fn drop(&mut self) {
        let now = self.0.0.clock.now();
        let mut uses = self.0.uses();
        uses.open -= 1;
        uses.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_use_keeps_idle_time_at_zero() {
        let clock = Clock::default();
        let activity = Activity::new(clock.clone());
        let hour = Duration::from_secs(3600);
        clock.advance(hour);
        assert!(activity.idle() >= hour);
        let in_use = activity.in_use();
        clock.advance(hour);
        assert_eq!(activity.idle(), Duration::ZERO);
        drop(in_use);
        assert!(activity.idle() < hour);
        clock.advance(hour);
        activity.touch();
        assert!(activity.idle() < hour);
    }
}
