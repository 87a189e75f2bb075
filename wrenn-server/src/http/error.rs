//! The one place where an error becomes an answer.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value, json};
use wrenn_api::error::{ApiError, ErrorBody, ErrorCode};

use super::guard;
use crate::service::error::ServiceError;

pub(super) const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");
/// Seconds after which to try again what failed for now.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// An error that is about to be answered.
#[derive(Debug)]
pub(crate) struct HttpError {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) details: Map<String, Value>,
}

impl HttpError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Map::new(),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// The error without an HTTP answer around it, as sockets and lists send it.
    pub(crate) fn to_api(&self) -> ApiError {
        ApiError {
            code: self.code,
            message: self.message.clone(),
            request_id: guard::request_id(),
            details: self.details.clone(),
        }
    }
}

impl From<ServiceError> for HttpError {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        let code = match &error {
            ServiceError::Invalid(_) => ErrorCode::InvalidRequest,
            ServiceError::NotFound(_) => ErrorCode::NotFound,
            ServiceError::WrongStatus { status, .. } => {
                return Self::new(ErrorCode::InvalidState, message).with("status", status.as_str());
            }
            ServiceError::NameTaken(name) => {
                return Self::new(ErrorCode::Conflict, message).with("name", name.as_str());
            }
            ServiceError::SnapshotNameTaken(name) => {
                return Self::new(ErrorCode::TemplateNameTaken, message)
                    .with("name", name.as_str());
            }
            ServiceError::Conflict(_) => ErrorCode::Conflict,
            ServiceError::IdempotencyInProgress => ErrorCode::IdempotencyInProgress,
            ServiceError::IdempotencyMismatch => ErrorCode::IdempotencyMismatch,
            ServiceError::NoHosts => ErrorCode::NoHostsAvailable,
            ServiceError::HostUnavailable { .. } | ServiceError::Stopping(_) => {
                ErrorCode::HostUnavailable
            }
            ServiceError::HostFull(_) => ErrorCode::HostFull,
            ServiceError::DataLost(_) => ErrorCode::DataLost,
            ServiceError::TooLarge(_) => ErrorCode::TooLarge,
            ServiceError::GuestDiskFull(_) => ErrorCode::GuestDiskFull,
            ServiceError::GuestPermissionDenied(_) => ErrorCode::GuestPermissionDenied,
            ServiceError::CommandNotStarted { exit_code, .. } => {
                return Self::new(ErrorCode::InvalidRequest, message).with("exit_code", *exit_code);
            }
            ServiceError::AgentFailed(_) | ServiceError::GuestUnavailable(_) => {
                ErrorCode::AgentError
            }
            ServiceError::Unauthorized => {
                return Self::new(
                    ErrorCode::Unauthorized,
                    "no valid credential; send an API key as X-API-Key, \
                     which `wrenn up` prints at its first start",
                );
            }
            ServiceError::Store(error) => {
                tracing::error!(error = %chain(error), "failed to use the database");
                ErrorCode::InternalError
            }
            ServiceError::Internal(reason) => {
                tracing::error!(reason, "failed to answer a request");
                ErrorCode::InternalError
            }
        };
        Self::new(code, message)
    }
}

/// An error and its sources, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}

/// Statuses whose answer says whether to repeat the request.
fn says_whether_to_retry(status: StatusCode, code: ErrorCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504) || code == ErrorCode::IdempotencyInProgress
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let code = self.code;
        let body = ErrorBody {
            error: self.to_api(),
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if says_whether_to_retry(status, code) {
            let retry = if code.is_retryable() { "true" } else { "false" };
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(retry));
            if code.is_retryable() {
                headers.insert(RETRY_AFTER, RETRY_SECONDS);
            }
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body stays unread, and would be taken for the next request.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(code);
        response
    }
}

/// What axum refuses by itself: paths and methods.
pub(crate) fn not_found(path: &str) -> HttpError {
    HttpError::new(
        ErrorCode::NotFound,
        format!(
            "there is no path '{}'; /docs lists those that there are",
            wrenn_api::error::shorten(path)
        ),
    )
}

pub(crate) fn method_not_allowed(method: &str, path: &str) -> HttpError {
    HttpError::new(
        ErrorCode::MethodNotAllowed,
        format!(
            "'{}' takes no {method}; /docs lists what it takes",
            wrenn_api::error::shorten(path)
        ),
    )
    .with("method", json!(method))
}

#[cfg(test)]
mod tests {
    use wrenn_api::status::Status;
    use wrenn_proto::hostagent::Reason;

    use super::*;
    use crate::hosts::client::HostError;

    #[test]
    fn wrong_status_is_409_with_the_status() {
        let error = ServiceError::wrong_status(&wrenn_api::id::SandboxId::random(), Status::Paused);
        let error = HttpError::from(error);
        assert_eq!(error.code.http_status(), 409);
        assert_eq!(error.details["status"], "paused");
        assert!(
            error.message.contains("resume it first"),
            "{}",
            error.message
        );
    }

    #[test]
    fn silent_guest_is_502_with_advice() {
        let refused = HostError::Refused {
            reason: Reason::REASON_GUEST_UNAVAILABLE,
            state: None,
            message: "the guest did not answer within 60 s; resume it again".to_owned(),
        };
        let id = wrenn_api::id::SandboxId::random();
        let error = HttpError::from(ServiceError::of_host(&id, refused));
        assert_eq!(error.code.http_status(), 502);
        assert!(error.message.ends_with("resume it again"));
    }

    #[test]
    fn retryable_errors_say_so() {
        let response = HttpError::from(ServiceError::NoHosts).into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["should-retry"], "true");
        assert_eq!(response.headers()["retry-after"], "1");
        let response = HttpError::from(ServiceError::IdempotencyMismatch).into_response();
        assert_eq!(response.status(), 422);
        assert!(!response.headers().contains_key("should-retry"));
    }
}
