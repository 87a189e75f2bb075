//! What can go wrong between a client and the daemon.

use std::io;

use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::Reason;
use wrenn_proto::reason;

/// Kinds of refusal, for those who act on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RpcCode {
    /// The request makes no sense to the daemon.
    InvalidArgument,
    /// A place that lies outside of what there is.
    OutOfRange,
    /// No such process, file, user or directory.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// What it is about is in no state for it, as a command whose input is closed.
    FailedPrecondition,
    /// The guest's user may not.
    PermissionDenied,
    /// The token is missing or wrong, or the user is unknown.
    Unauthenticated,
    /// The deadline passed; a command was killed by it.
    DeadlineExceeded,
    /// The guest has no space or no process left.
    ResourceExhausted,
    /// The daemon could not be reached, or the connection broke.
    Unavailable,
    /// Anything else.
    Internal,
}

impl From<ErrorCode> for RpcCode {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::InvalidArgument => Self::InvalidArgument,
            ErrorCode::OutOfRange => Self::OutOfRange,
            ErrorCode::NotFound => Self::NotFound,
            ErrorCode::AlreadyExists => Self::AlreadyExists,
            ErrorCode::FailedPrecondition => Self::FailedPrecondition,
            ErrorCode::PermissionDenied => Self::PermissionDenied,
            ErrorCode::Unauthenticated => Self::Unauthenticated,
            ErrorCode::DeadlineExceeded => Self::DeadlineExceeded,
            ErrorCode::ResourceExhausted => Self::ResourceExhausted,
            ErrorCode::Unavailable => Self::Unavailable,
            _ => Self::Internal,
        }
    }
}

/// Why a request to the daemon failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The daemon refused, or could not be reached.
    #[error("{what} failed in the guest: {message}")]
    Rpc {
        /// What was asked for.
        what: &'static str,
        /// The kind of refusal.
        code: RpcCode,
        /// Why, where the daemon says it for programs. Not to be believed further than the
        /// guest.
        reason: Option<Reason>,
        /// The daemon's words.
        message: String,
    },
    /// A plain request was refused.
    #[error("{what} answered {status}: {message}")]
    Status {
        /// What was asked for.
        what: &'static str,
        /// Status of the answer.
        status: u16,
        /// The daemon's words.
        message: String,
    },
    /// A plain request was cut off, or could not be made.
    #[error("{what} was cut off")]
    Transport {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A request cannot be written down.
    #[error("a request cannot be made with this {what}: {reason}")]
    Request {
        /// The part that is at fault.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The daemon broke its own protocol.
    #[error("{what} answered out of turn: {reason}")]
    Protocol {
        /// What was asked for.
        what: &'static str,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The caller's own end of a copy failed.
    #[error("cannot {what}")]
    Local {
        /// What was tried here.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl GuestError {
    pub(super) fn rpc(what: &'static str) -> impl Fn(ConnectError) -> Self {
        move |error| Self::Rpc {
            what,
            code: error.code.into(),
            reason: reason::of(&error).and_then(|info| info.reason.as_known()),
            message: error.message.clone().unwrap_or_else(|| error.to_string()),
        }
    }

    pub(super) fn transport(
        what: &'static str,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Transport {
            what,
            source: io::Error::other(error),
        }
    }

    /// Why, where the daemon says it for programs.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Rpc { reason, .. } => *reason,
            _ => None,
        }
    }

    /// The kind of refusal, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<RpcCode> {
        match self {
            Self::Rpc { code, .. } => Some(*code),
            Self::Status { status, .. } => Some(match status {
                400 => RpcCode::InvalidArgument,
                401 => RpcCode::Unauthenticated,
                403 => RpcCode::PermissionDenied,
                404 => RpcCode::NotFound,
                416 => RpcCode::OutOfRange,
                429 | 507 => RpcCode::ResourceExhausted,
                502..=504 => RpcCode::Unavailable,
                _ => RpcCode::Internal,
            }),
            Self::Transport { .. } => Some(RpcCode::Unavailable),
            Self::Request { .. } | Self::Protocol { .. } | Self::Local { .. } => None,
        }
    }
}
