//! What a fleet tells those who count or report.

use crate::SandboxId;
use crate::sandbox::{PauseTimings, Timings};

/// Something that happened to a sandbox of a fleet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FleetEvent {
    /// It was created, and took this long.
    Created(SandboxId, Timings),
    /// It could not be created.
    NotCreated(SandboxId),
    /// It was destroyed before it was ready.
    Abandoned(SandboxId),
    /// It was paused, and took this long.
    Paused(SandboxId, PauseTimings),
    /// It could not be paused.
    NotPaused(SandboxId),
    /// It was written down while it went on, and took this long.
    Frozen(SandboxId, PauseTimings),
    /// It could not be written down.
    NotFrozen(SandboxId),
    /// It was resumed, and took this long.
    Resumed(SandboxId, Timings),
    /// It could not be resumed, and is paused as before, unless it broke.
    NotResumed(SandboxId),
    /// It was taken over, running, paused or broken.
    TakenOver(SandboxId),
    /// Its VM ended and it is in error now.
    Broke(SandboxId),
    /// It was destroyed.
    Destroyed(SandboxId),
}
