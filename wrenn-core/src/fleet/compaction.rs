//! Bringing the memory of a paused sandbox into one file, whatever becomes of it meanwhile.
//!
//! ```text
//! paused as X ─▶ copy of X begins ─┬─▶ done: paused as the copy
//!                                  └─▶ resumed from X ─▶ done: the next diff is one to the copy
//! ```
//!
//! A resume never waits for it. The next pause does, so that a chain cannot grow faster than
//! it is copied.

use tokio::task::JoinHandle;
use tracing::warn;

use super::driven::PausedSandbox;
use crate::chain::Chain;
use crate::sandbox::{Compacted, ResumeError};
use crate::snapshot::BuildId;

type Outcome = Result<Option<Compacted>, ResumeError>;

#[derive(Default)]
pub(super) struct Compaction {
    running: Option<JoinHandle<Outcome>>,
    /// The build that was looked at last, whatever came of it.
    looked_at: Option<BuildId>,
}

impl Compaction {
    /// Begins, unless the sandbox was looked at already or another copy is being made.
    pub(super) fn begin(&mut self, paused: &impl PausedSandbox) {
        if self.running.is_none() && self.looked_at.as_ref() != paused.build() {
            self.looked_at = paused.build().cloned();
            self.running = Some(tokio::spawn(paused.compacted()));
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits for its end. `None` where there is nothing to take.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn finished(&mut self) -> Option<Compacted> {
        let outcome = self.running.as_mut()?.await;
        self.running = None;
        match outcome {
            Ok(Ok(compacted)) => compacted,
            Ok(Err(error)) => {
                warn!(error = %Chain(&error), "its memory stays in many files");
                None
            }
            Err(error) => {
                warn!(%error, "its memory stays in many files");
                None
            }
        }
    }
}
