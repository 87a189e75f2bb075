//! When a sandbox was last used, by whatever counts as use.
//!
//! Commands, files, pings, traffic, and every byte that streams in or out. Whoever does
//! something that takes time holds an [`InUse`] meanwhile, so that a long silent command
//! is no idle sandbox.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The use of one sandbox. Cheap to clone; all clones are of the same sandbox.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Milliseconds from [`epoch`] to the last use.
    last: AtomicU64,
    in_use: AtomicUsize,
}

/// Something is being done with the sandbox until this is dropped.
#[derive(Debug)]
pub struct InUse(Activity);

impl Default for Activity {
    fn default() -> Self {
        let activity = Self(Arc::new(Inner {
            last: AtomicU64::new(0),
            in_use: AtomicUsize::new(0),
        }));
        activity.touch();
        activity
    }
}

impl Activity {
    /// Something was done just now.
    pub fn touch(&self) {
        self.0.last.fetch_max(now(), Ordering::Relaxed);
    }

    /// Something is being done from now on.
    #[must_use]
    pub fn begin(&self) -> InUse {
        self.0.in_use.fetch_add(1, Ordering::AcqRel);
        InUse(self.clone())
    }

    /// How long nothing has been done; zero while something is.
    #[must_use]
    pub fn idle(&self) -> Duration {
        if self.0.in_use.load(Ordering::Acquire) > 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(now().saturating_sub(self.0.last.load(Ordering::Relaxed)))
    }
}

impl InUse {
    /// A byte came or went. Only matters where the use itself might outlive its interest.
    pub fn touch(&self) {
        self.0.touch();
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        // The time first: between the two, an observer sees a sandbox in use.
        self.0.touch();
        self.0.0.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Milliseconds on a clock that is never set back.
fn now() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    let elapsed = EPOCH.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_idle_while_something_is_done() {
        let activity = Activity::default();
        let first = activity.begin();
        let second = activity.clone().begin();
        drop(first);
        activity.0.last.store(0, Ordering::Relaxed);
        assert_eq!(activity.idle(), Duration::ZERO, "the second goes on");
        drop(second);
        // The end of a use is a use.
        assert!(activity.0.last.load(Ordering::Relaxed) <= now());
        assert_eq!(activity.0.in_use.load(Ordering::Acquire), 0);
    }
}
