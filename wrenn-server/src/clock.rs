//! The clock, as an argument: a test of 90 seconds takes milliseconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use time::OffsetDateTime;

/// Tells the time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The clock of this host.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that starts now and moves only when it is [advanced](Self::advance).
    #[must_use]
    pub fn manual() -> Self {
        let now = Self::system().micros();
        Self(Source::Manual(Arc::new(AtomicI64::new(now))))
    }

    /// Moves a manual clock, and every clone of it. The system's clock stays.
    pub fn advance(&self, by: std::time::Duration) {
        if let Source::Manual(micros) = &self.0 {
            let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            micros.fetch_add(by, Ordering::SeqCst);
        }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.micros()) * 1000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// The time in microseconds since 1970.
    #[must_use]
    pub fn micros(&self) -> i64 {
        match &self.0 {
            Source::Manual(micros) => micros.load(Ordering::SeqCst),
            Source::System => {
                i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000)
                    .unwrap_or(i64::MAX)
            }
        }
    }
}
