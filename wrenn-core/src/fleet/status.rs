//! What a sandbox is at this moment.

use std::time::Duration;

use super::{FreezeRefused, PauseRefused, ResumeRefused};
use crate::SandboxId;
use crate::guest::GuestClient;
use crate::network::SlotNumber;
use crate::sandbox::{State, Timings};

/// A sandbox at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// Why it is in [`State::Error`], or why its host halted or paused it.
    pub reason: Option<String>,
    /// When its creation began, in RFC 3339; empty until it has.
    pub created_at: String,
    /// How long it may be idle before it is paused; zero for any length.
    pub timeout: Duration,
    /// The client of its guest's daemon, while it runs.
    pub guest: Option<GuestClient>,
    /// Its network slot, while it runs.
    pub slot: Option<SlotNumber>,
    /// The process id of its VMM, while it runs.
    pub vmm_pid: Option<u32>,
    /// The process id of the pager that feeds it memory, where one does.
    pub pager_pid: Option<u32>,
    /// Whether it is paused because it was idle, and nobody has acknowledged that.
    pub auto_paused: bool,
    /// How long each step of its creation or last resume took, where this program did it.
    pub timings: Option<Timings>,
}

impl Status {
    pub(super) fn pending(timeout: Duration) -> Self {
        Self {
            state: State::Pending,
            reason: None,
            created_at: String::new(),
            timeout,
            guest: None,
            slot: None,
            vmm_pid: None,
            pager_pid: None,
            auto_paused: false,
            timings: None,
        }
    }

    pub(super) fn cannot_pause(&self, id: &SandboxId) -> PauseRefused {
        PauseRefused::State {
            id: id.clone(),
            state: self.state,
            reason: self.reason.clone(),
        }
    }

    pub(super) fn cannot_resume(&self, id: &SandboxId) -> ResumeRefused {
        ResumeRefused::State {
            id: id.clone(),
            state: self.state,
            reason: self.reason.clone(),
        }
    }

    pub(super) fn cannot_freeze(&self, id: &SandboxId) -> FreezeRefused {
        FreezeRefused::State {
            id: id.clone(),
            state: self.state,
            reason: self.reason.clone(),
        }
    }

    /// The same without what only a running sandbox has.
    pub(super) fn without_vm(&self, state: State, reason: Option<String>) -> Self {
        Self {
            state,
            reason,
            guest: None,
            slot: None,
            vmm_pid: None,
            pager_pid: None,
            auto_paused: false,
            ..self.clone()
        }
    }
}
