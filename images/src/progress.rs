//! What a build tells its caller while it works.

use std::time::{Duration, Instant};

/// One thing that happened. Steps nest: a step that needs another starts it inside itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// Work on a step begins.
    Started { step: &'a str },
    /// The step was already done in an earlier run, and its product is used as it is.
    Reused { step: &'a str },
    /// The step's work is done.
    Finished { step: &'a str, elapsed: Duration },
    /// The step failed; the error follows as the call's result.
    Failed { step: &'a str },
}

/// Receives the events of a build. Called from the building thread, so it should be quick.
pub trait Progress: Send + Sync {
    /// Takes note of one event.
    fn report(&self, event: Event<'_>);
}

/// A receiver for callers that have nobody to tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _event: Event<'_>) {}
}

/// Runs `work` as the step `step`, with its events around it.
///
/// # Errors
/// Whatever `work` returns.
pub fn step<T, E>(
    progress: &dyn Progress,
    step: &str,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    progress.report(Event::Started { step });
    let started = Instant::now();
    let result = work();
    progress.report(match &result {
        Ok(_) => Event::Finished {
            step,
            elapsed: started.elapsed(),
        },
        Err(_) => Event::Failed { step },
    });
    result
}
