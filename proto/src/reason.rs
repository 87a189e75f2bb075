//! Why a call of the agent failed, for programs: an [`ErrorInfo`] among the details of its
//! error. Agent, callers and stand-ins of an agent share it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use buffa::Message as _;
use connectrpc::{ConnectError, ErrorDetail};

use crate::hostagent::{ErrorInfo, Reason, State};

/// The message's full name, by which it is found among the details.
const TYPE_NAME: &str = "hostagent.v1.ErrorInfo";

/// The error with its reason, and the state of the sandbox where that is why. A reason that
/// it had is replaced.
#[must_use]
pub fn with_reason(mut error: ConnectError, reason: Reason, state: Option<State>) -> ConnectError {
    error.details.retain(|detail| !is_ours(detail));
    let info = ErrorInfo {
        reason: reason.into(),
        state: state.unwrap_or_default().into(),
    };
    error.with_detail(ErrorDetail::from_message(TYPE_NAME, &info))
}

/// The reason of an error; `None` where it has none that can be read, as for errors that the
/// transport made.
#[must_use]
pub fn of(error: &ConnectError) -> Option<ErrorInfo> {
    let detail = error.details.iter().find(|detail| is_ours(detail))?;
    let value = detail.value.as_deref().unwrap_or_default();
    let bytes = STANDARD_NO_PAD
        .decode(value)
        .or_else(|_| STANDARD.decode(value))
        .ok()?;
    ErrorInfo::decode_from_slice(&bytes).ok()
}

/// gRPC writes a prefix before the name.
fn is_ours(detail: &ErrorDetail) -> bool {
    detail.type_url.rsplit('/').next() == Some(TYPE_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_read_as_it_was_attached() {
        let error = ConnectError::failed_precondition("it is paused");
        assert_eq!(of(&error), None);
        let error = with_reason(error, Reason::REASON_INTERNAL, None);
        let error = with_reason(error, Reason::REASON_WRONG_STATE, Some(State::STATE_PAUSED));
        assert_eq!(error.details.len(), 1, "a second reason replaces the first");
        let info = of(&error).unwrap();
        assert_eq!(info.reason.as_known(), Some(Reason::REASON_WRONG_STATE));
        assert_eq!(info.state.as_known(), Some(State::STATE_PAUSED));
        assert_eq!(error.message.as_deref(), Some("it is paused"));
    }

    #[test]
    fn reason_of_a_grpc_peer_is_read() {
        let mut error = with_reason(ConnectError::not_found(""), Reason::REASON_EXISTS, None);
        error.details[0].type_url = format!("type.googleapis.com/{TYPE_NAME}");
        let info = of(&error).unwrap();
        assert_eq!(info.reason.as_known(), Some(Reason::REASON_EXISTS));
        assert_eq!(info.state.as_known(), Some(State::STATE_UNSPECIFIED));
    }
}
