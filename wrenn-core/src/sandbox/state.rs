//! The life of a sandbox, as one pure function.
//!
//! ```text
//! pending ──booted──▶ running ──pause──▶ pausing ──▶ paused ──resume──▶ resuming ──▶ running
//!    │                  │  ▲                 │ failed ▶ running or error   │ failed ▶ paused
//!    └─failed─▶ error   │  └── host back ── missing ◀── host unreachable (from any live state)
//!  any ──destroy──▶ stopped (final)
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is being created.
    Pending,
    /// Commands can run in it.
    Running,
    /// Its memory and disk are being written down.
    Pausing,
    /// It lies on disk and uses nothing else.
    Paused,
    /// It is coming back from disk.
    Resuming,
    /// It broke. What could be kept of its data is there until it is destroyed.
    Error,
    /// Its host cannot be reached; it may come back.
    Missing,
    /// It is gone, for good.
    Stopped,
}

/// What happens to a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The guest's daemon answered for the first time.
    Booted,
    /// Somebody, or the clock, wants it paused.
    PauseAsked,
    /// Memory and disk are safe and the VM is gone.
    Paused,
    /// It could not be paused, and its VM goes on.
    PauseFailed,
    /// Somebody wants it back.
    ResumeAsked,
    /// The guest's daemon answered again.
    Resumed,
    /// It could not be resumed, and lies on disk as before.
    ResumeFailed,
    /// Its VM ended, or a step failed that leaves it without one.
    Failed,
    /// Its host stopped answering.
    HostUnreachable,
    /// Its host is back and it still runs.
    FoundRunning,
    /// Its host is back and it lies on disk.
    FoundPaused,
    /// Its host is back and it is broken.
    FoundBroken,
    /// Its host is back and knows nothing of it, or somebody had it destroyed.
    Destroyed,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Error,
        Self::Missing,
        Self::Stopped,
    ];

    /// The state after `event`, or `None` where that cannot happen in this state.
    #[must_use]
    pub const fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::Stopped, _) => None,
            (_, Event::Destroyed) => Some(Self::Stopped),
            (Self::Pending, Event::Booted)
            | (Self::Resuming, Event::Resumed)
            | (Self::Pausing, Event::PauseFailed)
            | (Self::Missing, Event::FoundRunning) => Some(Self::Running),
            (Self::Running, Event::PauseAsked) => Some(Self::Pausing),
            (Self::Pausing, Event::Paused)
            | (Self::Resuming, Event::ResumeFailed)
            | (Self::Missing, Event::FoundPaused) => Some(Self::Paused),
            (Self::Paused, Event::ResumeAsked) => Some(Self::Resuming),
            (Self::Pending | Self::Running | Self::Pausing | Self::Resuming, Event::Failed)
            | (Self::Missing, Event::FoundBroken) => Some(Self::Error),
            (
                Self::Pending | Self::Running | Self::Pausing | Self::Paused | Self::Resuming,
                Event::HostUnreachable,
            ) => Some(Self::Missing),
            _ => None,
        }
    }

    /// Whether a VM of it may exist.
    #[must_use]
    pub const fn has_vm(self) -> bool {
        matches!(
            self,
            Self::Pending | Self::Running | Self::Pausing | Self::Resuming
        )
    }

    /// The name, as it stands in files and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Error => "error",
            Self::Missing => "missing",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 13] = [
        Event::Booted,
        Event::PauseAsked,
        Event::Paused,
        Event::PauseFailed,
        Event::ResumeAsked,
        Event::Resumed,
        Event::ResumeFailed,
        Event::Failed,
        Event::HostUnreachable,
        Event::FoundRunning,
        Event::FoundPaused,
        Event::FoundBroken,
        Event::Destroyed,
    ];

    /// Every pair that leads somewhere; all others must lead nowhere.
    #[test]
    fn every_pair_of_state_and_event() {
        use State::{Error, Missing, Paused, Pausing, Pending, Resuming, Running, Stopped};
        let mut allowed = vec![
            (Pending, Event::Booted, Running),
            (Pending, Event::Failed, Error),
            (Running, Event::PauseAsked, Pausing),
            (Running, Event::Failed, Error),
            (Pausing, Event::Paused, Paused),
            (Pausing, Event::PauseFailed, Running),
            (Pausing, Event::Failed, Error),
            (Paused, Event::ResumeAsked, Resuming),
            (Resuming, Event::Resumed, Running),
            (Resuming, Event::ResumeFailed, Paused),
            (Resuming, Event::Failed, Error),
            (Missing, Event::FoundRunning, Running),
            (Missing, Event::FoundPaused, Paused),
            (Missing, Event::FoundBroken, Error),
        ];
        for live in [Pending, Running, Pausing, Paused, Resuming] {
            allowed.push((live, Event::HostUnreachable, Missing));
        }
        for any in State::ALL.into_iter().filter(|state| *state != Stopped) {
            allowed.push((any, Event::Destroyed, Stopped));
        }
        for state in State::ALL {
            for event in EVENTS {
                let wanted = allowed
                    .iter()
                    .find(|(from, by, _)| (*from, *by) == (state, event))
                    .map(|(_, _, to)| *to);
                assert_eq!(state.after(event), wanted, "{state} after {event:?}");
            }
        }
    }

    #[test]
    fn names_are_those_of_the_files() {
        for state in State::ALL {
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(json, format!("\"{state}\""));
        }
    }
}
