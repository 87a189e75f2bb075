//! Errors as an agent gives them: a code, a reason for programs, and a sentence.

use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::{Reason, State};
use wrenn_proto::reason::with_reason;

pub(crate) fn refuse(code: ErrorCode, reason: Reason, message: impl Into<String>) -> ConnectError {
    with_reason(ConnectError::new(code, message.into()), reason, None)
}

pub(crate) fn invalid(message: impl Into<String>) -> ConnectError {
    refuse(ErrorCode::InvalidArgument, Reason::REASON_INVALID, message)
}

pub(crate) fn too_large(message: impl Into<String>) -> ConnectError {
    refuse(
        ErrorCode::InvalidArgument,
        Reason::REASON_TOO_LARGE,
        message,
    )
}

pub(crate) fn full(message: impl Into<String>) -> ConnectError {
    refuse(
        ErrorCode::ResourceExhausted,
        Reason::REASON_HOST_FULL,
        message,
    )
}

pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> ConnectError {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        cause = error.source();
    }
    // A real agent keeps the cause in its log; the test has only this.
    refuse(ErrorCode::Internal, Reason::REASON_INTERNAL, message)
}

pub(crate) fn sandbox_not_found(id: &str) -> ConnectError {
    refuse(
        ErrorCode::NotFound,
        Reason::REASON_SANDBOX_NOT_FOUND,
        format!("there is no sandbox {id} on this host"),
    )
}

pub(crate) fn stopping() -> ConnectError {
    refuse(
        ErrorCode::Unavailable,
        Reason::REASON_STOPPING,
        "the agent stops; sandboxes and commands go on, try again later",
    )
}

pub(crate) fn destroyed(id: &str) -> ConnectError {
    refuse(
        ErrorCode::Aborted,
        Reason::REASON_DESTROYED,
        format!("sandbox {id} was destroyed while it was created"),
    )
}

/// The sandbox is in a state that does not allow it.
pub(crate) fn wrong_state(id: &str, state: State, reason: &str, allowed: &str) -> ConnectError {
    let because = if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    };
    let message = format!("sandbox {id} is {}{because}, and {allowed}", name(state));
    let why = match state {
        State::STATE_STOPPED => Reason::REASON_DESTROYED,
        _ => Reason::REASON_WRONG_STATE,
    };
    let error = ConnectError::failed_precondition(message);
    with_reason(error, why, Some(state))
}

fn name(state: State) -> &'static str {
    match state {
        State::STATE_PENDING => "pending",
        State::STATE_RUNNING => "running",
        State::STATE_PAUSING => "pausing",
        State::STATE_PAUSED => "paused",
        State::STATE_RESUMING => "resuming",
        State::STATE_ERROR => "error",
        State::STATE_STOPPED => "stopped",
        State::STATE_UNSPECIFIED => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use wrenn_proto::reason;

    use super::*;

    #[test]
    fn wrong_state_names_the_state() {
        let error = wrong_state("sb1", State::STATE_PAUSED, "idle", "only that");
        let message = error.message.clone().unwrap_or_default();
        assert_eq!(message, "sandbox sb1 is paused (idle), and only that");
        let info = reason::of(&error).unwrap();
        assert_eq!(info.state.as_known(), Some(State::STATE_PAUSED));
        assert_eq!(info.reason.as_known(), Some(Reason::REASON_WRONG_STATE));
    }
}
