//! The status of sandboxes and hosts.

use crate::string_enum::string_enum;

string_enum! {
    /// The status of a sandbox.
    ///
    /// ```text
    /// pending ──▶ running ──▶ pausing ──▶ paused ──▶ resuming ──▶ running
    ///    │           │ ▲                                              │
    ///    └─▶ error   ▼ └── host back ── missing ◀── host unreachable ─┘
    /// any ──destroy──▶ stopped (final)
    /// ```
    Status, "status" {
        /// It is being created.
        Pending = "pending",
        /// It runs.
        Running = "running",
        /// It is being snapshotted to disk.
        Pausing = "pausing",
        /// It lies on disk.
        Paused = "paused",
        /// It is being restored from disk.
        Resuming = "resuming",
        /// It failed; `status_reason` says in which step.
        Error = "error",
        /// Its host does not answer. It may come back.
        Missing = "missing",
        /// It was destroyed. Final.
        Stopped = "stopped",
    }
}

impl Status {
    /// Whether an operation is under way that ends in another status.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Pending | Self::Pausing | Self::Resuming)
    }
}

string_enum! {
    /// The status of a host.
    HostStatus, "host status" {
        /// It has not registered yet.
        Pending = "pending",
        /// It answers.
        Online = "online",
        /// It does not answer.
        Unreachable = "unreachable",
        /// It gets no new sandboxes.
        Cordoned = "cordoned",
        /// Its sandboxes are being paused.
        Draining = "draining",
    }
}

string_enum! {
    /// The end of a sandbox at its deadline.
    OnEnd, "end" {
        /// It is paused.
        Pause = "pause",
        /// It is destroyed.
        Destroy = "destroy",
    }
}
