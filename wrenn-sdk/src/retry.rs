//! When a request is repeated, and after how long.
//!
//! | answer | repeated |
//! |---|---|
//! | `Should-Retry: true` | yes; `agent_error` and `timed_out` only where it is safe, since what was asked for may have happened |
//! | `Should-Retry: false` | no |
//! | 429, 502, 503, 504 without that header | where it is safe |
//! | connection broke | where it is safe |
//! | no connection | where the server answered this client before: it is being restarted |
//!
//! Safe is what only reads and what has an idempotency key. `Retry-After` says how long to
//! wait; else the wait doubles each time, with some jitter. A server that still works on the
//! first attempt (`idempotency_in_progress`) is asked again without counting.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use rand::Rng as _;
use wrenn_api::error::ErrorCode;

const MAX_RETRIES: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A server that wants more patience than this is taken for one that refuses.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long the first attempt may take in the eyes of the second.
const LONGEST_FIRST_ATTEMPT: Duration = Duration::from_secs(15 * 60);

/// How an attempt failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    /// No request was sent. The server has answered this client before, or not.
    NotConnected { seen_before: bool },
    /// The connection broke.
    Disconnected,
    /// The server answered with an error.
    Answer {
        status: StatusCode,
        code: ErrorCode,
        should_retry: Option<bool>,
        retry_after: Option<Duration>,
    },
}

impl Failure {
    pub(crate) fn answer(status: StatusCode, code: ErrorCode, headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        Self::Answer {
            status,
            code,
            should_retry: text("should-retry").and_then(|value| value.parse().ok()),
            retry_after: text("retry-after")
                .and_then(|value| value.parse().ok())
                .map(Duration::from_secs),
        }
    }
}

/// The retries of one call.
#[derive(Debug)]
pub(crate) struct Retries {
    safe: bool,
    used: u32,
    started: tokio::time::Instant,
}

impl Retries {
    pub(crate) fn new(safe: bool) -> Self {
        Self {
            safe,
            used: 0,
            started: tokio::time::Instant::now(),
        }
    }

    /// How long to wait before the next attempt; nothing if there is none.
    pub(crate) fn next(&mut self, failure: Failure) -> Option<Duration> {
        let wait = match failure {
            Failure::NotConnected { seen_before } => seen_before.then(|| self.backoff())?,
            Failure::Disconnected => self.safe.then(|| self.backoff())?,
            Failure::Answer {
                code: ErrorCode::IdempotencyInProgress,
                should_retry,
                retry_after,
                ..
            } if should_retry != Some(false) => {
                let wait = retry_after.unwrap_or(Duration::from_secs(1));
                return (self.started.elapsed() < LONGEST_FIRST_ATTEMPT).then_some(wait);
            }
            Failure::Answer {
                status,
                code,
                should_retry,
                retry_after,
            } => {
                let again =
                    should_retry.unwrap_or(self.safe && matches!(status.as_u16(), 429 | 502..=504));
                let may_have_happened = matches!(code, ErrorCode::AgentError | ErrorCode::TimedOut);
                let again = again && (self.safe || !may_have_happened);
                again.then(|| retry_after.unwrap_or_else(|| self.backoff()))?
            }
        };
        if self.used == MAX_RETRIES || wait > LONGEST_WAIT {
            return None;
        }
        self.used += 1;
        Some(wait)
    }

    fn backoff(&self) -> Duration {
        backoff(self.used)
    }
}

/// The wait before one more attempt after `failed` ones: doubles up to two seconds, and
/// varies by a quarter so that many clients do not come at once.
pub(crate) fn backoff(failed: u32) -> Duration {
    const MOST_DOUBLINGS: u32 = 4;
    const LONGEST: Duration = Duration::from_secs(2);
    let wait = FIRST_WAIT * 2_u32.pow(failed.min(MOST_DOUBLINGS));
    wait.min(LONGEST)
        .mul_f64(rand::rng().random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, should_retry: Option<bool>, retry_after: Option<u64>) -> Failure {
        Failure::Answer {
            status: StatusCode::from_u16(status).unwrap(),
            code: ErrorCode::Unknown,
            should_retry,
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn only_safe_calls_are_repeated_unasked() {
        for status in [429, 502, 503, 504] {
            assert!(
                Retries::new(true)
                    .next(answer(status, None, None))
                    .is_some()
            );
            assert!(
                Retries::new(false)
                    .next(answer(status, None, None))
                    .is_none()
            );
        }
        assert!(Retries::new(true).next(answer(500, None, None)).is_none());
        assert!(Retries::new(true).next(Failure::Disconnected).is_some());
        assert!(Retries::new(false).next(Failure::Disconnected).is_none());
    }

    #[test]
    fn server_decides_where_it_says_so() {
        let waited = Retries::new(false).next(answer(409, Some(true), Some(2)));
        assert_eq!(waited, Some(Duration::from_secs(2)));
        assert!(
            Retries::new(true)
                .next(answer(503, Some(false), None))
                .is_none()
        );
        assert!(
            Retries::new(true)
                .next(answer(503, None, Some(3600)))
                .is_none()
        );
    }

    #[test]
    fn command_that_may_have_run_is_not_repeated() {
        let failure = |code| Failure::Answer {
            status: StatusCode::BAD_GATEWAY,
            code,
            should_retry: Some(true),
            retry_after: None,
        };
        for code in [ErrorCode::AgentError, ErrorCode::TimedOut] {
            assert!(Retries::new(false).next(failure(code)).is_none());
            assert!(Retries::new(true).next(failure(code)).is_some());
        }
        let full = failure(ErrorCode::HostFull);
        assert!(Retries::new(false).next(full).is_some());
    }

    #[test]
    fn retries_end_after_three() {
        let mut retries = Retries::new(true);
        for _ in 0..3 {
            assert!(retries.next(Failure::Disconnected).is_some());
        }
        assert!(retries.next(Failure::Disconnected).is_none());
    }

    #[test]
    fn absent_server_is_reported_at_once() {
        let mut retries = Retries::new(true);
        assert!(
            retries
                .next(Failure::NotConnected { seen_before: false })
                .is_none()
        );
        assert!(
            retries
                .next(Failure::NotConnected { seen_before: true })
                .is_some()
        );
    }

    #[test]
    fn first_attempt_underway_is_awaited_without_counting() {
        let mut retries = Retries::new(true);
        for _ in 0..20 {
            let underway = Failure::Answer {
                status: StatusCode::CONFLICT,
                code: ErrorCode::IdempotencyInProgress,
                should_retry: Some(true),
                retry_after: None,
            };
            assert_eq!(retries.next(underway), Some(Duration::from_secs(1)));
        }
    }
}
