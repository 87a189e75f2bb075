//! Why something was not done. `http::error` turns it into an answer, and nothing else does.

use wrenn_api::error::{InvalidValue, shorten};
use wrenn_api::id::SandboxId;
use wrenn_api::status::Status;
use wrenn_proto::hostagent::Reason;

use crate::hosts::client::HostError;
use crate::hosts::convert;
use crate::store::StoreError;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("sandbox {id} is {status}; {advice}")]
    WrongStatus {
        id: String,
        status: Status,
        advice: &'static str,
    },
    #[error("the name '{0}' is taken; choose another one")]
    NameTaken(String),
    #[error("your team has a snapshot '{0}'; choose another name, or overwrite it")]
    SnapshotNameTaken(String),
    #[error("{0}")]
    Conflict(String),
    #[error("the first request with this Idempotency-Key has not ended; ask again")]
    IdempotencyInProgress,
    #[error("this Idempotency-Key was used with another request; use a new key")]
    IdempotencyMismatch,
    #[error("no host is online; start an agent, or wait until one is back")]
    NoHosts,
    /// With `after_change`, the host may still do what it was asked; the row will say so.
    #[error("the host of the sandbox does not answer{}", if *.after_change {
        "; what became of the request shows in the sandbox's status once it does"
    } else {
        "; try again later"
    })]
    HostUnavailable { after_change: bool },
    #[error("no host has room for another sandbox: {0}")]
    HostFull(String),
    #[error("{0}")]
    DataLost(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    GuestDiskFull(String),
    #[error("{0}")]
    GuestPermissionDenied(String),
    /// A command that is not there, or is no program: exit code 127 or 126.
    #[error("{message}")]
    CommandNotStarted { exit_code: i32, message: String },
    #[error("{0}")]
    GuestUnavailable(String),
    #[error("the host's agent failed; the log of the agent says why")]
    AgentFailed(String),
    #[error("unauthorized")]
    Unauthorized,
    #[error("{0}")]
    Stopping(&'static str),
    #[error("the database does not answer; try again")]
    Store(#[from] StoreError),
    #[error("the request failed; the log of the server says why")]
    Internal(String),
}

impl ServiceError {
    pub(crate) fn sandbox_not_found(reference: &str) -> Self {
        Self::NotFound(format!(
            "there is no sandbox '{}'; GET /v1/sandboxes lists those that there are",
            shorten(reference)
        ))
    }

    pub(crate) fn template_not_found(reference: &str) -> Self {
        Self::NotFound(format!(
            "there is no template '{}'; GET /v1/templates lists those that there are",
            shorten(reference)
        ))
    }

    pub(crate) fn snapshot_not_found(reference: &str) -> Self {
        Self::NotFound(format!(
            "there is no snapshot '{}'; GET /v1/snapshots lists those that there are",
            shorten(reference)
        ))
    }

    pub(crate) fn wrong_status(id: &SandboxId, status: Status) -> Self {
        Self::WrongStatus {
            id: id.to_string(),
            status,
            advice: match status {
                Status::Paused => "resume it first",
                Status::Pending => "wait until it runs",
                Status::Pausing => "wait until it is paused",
                Status::Resuming => "wait until it is resumed",
                Status::Stopped => "it was destroyed; create another one",
                Status::Error => "its status_reason says why; it can be destroyed",
                Status::Missing => "wait until its host is back",
                _ => "try again",
            },
        }
    }

    /// The error of a call to the host of a sandbox.
    pub(crate) fn of_host(id: &SandboxId, error: HostError) -> Self {
        let (reason, state, message) = match error {
            HostError::Unreachable(source) => {
                tracing::warn!(sandbox_id = %id, error = %source, "failed to reach the host");
                return Self::HostUnavailable {
                    after_change: false,
                };
            }
            HostError::Refused {
                reason,
                state,
                message,
            } => (reason, state, message),
        };
        match reason {
            Reason::REASON_INVALID => Self::Invalid(message),
            Reason::REASON_SANDBOX_NOT_FOUND => Self::wrong_status(id, Status::Missing),
            Reason::REASON_DESTROYED => Self::wrong_status(id, Status::Stopped),
            Reason::REASON_TEMPLATE_NOT_FOUND
            | Reason::REASON_SNAPSHOT_NOT_FOUND
            | Reason::REASON_PROCESS_NOT_FOUND
            | Reason::REASON_PATH_NOT_FOUND => Self::NotFound(message),
            Reason::REASON_EXISTS => Self::Conflict(message),
            Reason::REASON_WRONG_STATE => {
                let status = state.and_then(convert::status).unwrap_or(Status::Error);
                Self::wrong_status(id, status)
            }
            Reason::REASON_HOST_FULL => Self::HostFull(message),
            Reason::REASON_GUEST_DISK_FULL => Self::GuestDiskFull(message),
            Reason::REASON_TOO_LARGE => Self::TooLarge(message),
            Reason::REASON_GUEST_PERMISSION_DENIED => Self::GuestPermissionDenied(message),
            Reason::REASON_COMMAND_NOT_FOUND => Self::CommandNotStarted {
                exit_code: 127,
                message,
            },
            Reason::REASON_COMMAND_NOT_EXECUTABLE => Self::CommandNotStarted {
                exit_code: 126,
                message,
            },
            Reason::REASON_GUEST_UNAVAILABLE => Self::GuestUnavailable(message),
            Reason::REASON_DATA_LOST => Self::DataLost(message),
            Reason::REASON_STOPPING => Self::HostUnavailable {
                after_change: false,
            },
            Reason::REASON_UNAUTHENTICATED => {
                tracing::error!(sandbox_id = %id, "the agent refused the server's token");
                Self::HostUnavailable {
                    after_change: false,
                }
            }
            Reason::REASON_INTERNAL | Reason::REASON_UNSPECIFIED => {
                tracing::error!(sandbox_id = %id, message, "the agent failed");
                Self::AgentFailed(message)
            }
        }
    }
}

impl From<InvalidValue> for ServiceError {
    fn from(error: InvalidValue) -> Self {
        Self::Invalid(error.to_string())
    }
}
