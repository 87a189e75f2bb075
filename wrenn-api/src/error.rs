//! The error body and its codes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::string_enum::string_enum;

/// A value that cannot be used, in a sentence that says what is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{value}' is no {what}; expected {expected}")]
pub struct InvalidValue {
    /// The kind of value.
    pub what: &'static str,
    /// The value, shortened.
    pub value: String,
    /// The form that it should have.
    pub expected: &'static str,
}

/// The first 64 characters of a text, for an error message.
#[must_use]
pub fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 64;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

string_enum! {
    /// The kind of an error, for programs.
    ErrorCode, "error code" {
        /// 400: a value of the request cannot be used; the message names it.
        InvalidRequest = "invalid_request",
        /// 401: no credential, or one that is not valid.
        Unauthorized = "unauthorized",
        /// 403: the caller may see it but not do it.
        Forbidden = "forbidden",
        /// 403: the guest's user may not do it.
        GuestPermissionDenied = "guest_permission_denied",
        /// 404: it does not exist, or belongs to another team.
        NotFound = "not_found",
        /// 405: the path exists, the method does not.
        MethodNotAllowed = "method_not_allowed",
        /// 409: the sandbox's status does not allow it; `details.status`.
        InvalidState = "invalid_state",
        /// 409: the name is taken, or something else stands in the way.
        Conflict = "conflict",
        /// 409: something still uses it; `details.users`.
        InUse = "in_use",
        /// 409: the host has sandboxes; `details.sandbox_ids`.
        HostHasSandboxes = "host_has_sandboxes",
        /// 409: a template of the team has this name.
        TemplateNameTaken = "template_name_taken",
        /// 409: the first request with this idempotency key has not ended yet.
        IdempotencyInProgress = "idempotency_in_progress",
        /// 410: the snapshot of the sandbox is damaged or gone.
        DataLost = "data_lost",
        /// 413: the body or the output is too large; there is a streaming way.
        TooLarge = "too_large",
        /// 416: no byte of the file is in the range.
        RangeNotSatisfiable = "range_not_satisfiable",
        /// 422: the idempotency key was used with another request.
        IdempotencyMismatch = "idempotency_mismatch",
        /// 429: the team's quota is used up; `details.limit`, `details.used`.
        QuotaExceeded = "quota_exceeded",
        /// 429: too many requests.
        RateLimited = "rate_limited",
        /// 502: the host's agent failed.
        AgentError = "agent_error",
        /// 503: no host is online.
        NoHostsAvailable = "no_hosts_available",
        /// 503: the host of the sandbox does not answer.
        HostUnavailable = "host_unavailable",
        /// 503: the host has no room for another sandbox.
        HostFull = "host_full",
        /// 504: the host did not answer in time.
        TimedOut = "timed_out",
        /// 507: the guest's disk is full.
        GuestDiskFull = "guest_disk_full",
        /// 500: the server failed; its log has the reason under the request id.
        InternalError = "internal_error",
    }
}

impl ErrorCode {
    /// The HTTP status that this code is sent with.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden | Self::GuestPermissionDenied => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::InvalidState
            | Self::Conflict
            | Self::InUse
            | Self::HostHasSandboxes
            | Self::TemplateNameTaken
            | Self::IdempotencyInProgress => 409,
            Self::DataLost => 410,
            Self::TooLarge => 413,
            Self::RangeNotSatisfiable => 416,
            Self::IdempotencyMismatch => 422,
            Self::QuotaExceeded | Self::RateLimited => 429,
            Self::AgentError => 502,
            Self::NoHostsAvailable | Self::HostUnavailable | Self::HostFull => 503,
            Self::TimedOut => 504,
            Self::GuestDiskFull => 507,
            Self::InternalError | Self::Unknown => 500,
        }
    }

    /// Whether the request may have been carried out, although its answer is this error.
    #[must_use]
    pub const fn is_outcome_unknown(self) -> bool {
        matches!(
            self,
            Self::AgentError | Self::HostUnavailable | Self::TimedOut
        )
    }

    /// Whether the same request may succeed later, without a change by the caller.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::IdempotencyInProgress
                | Self::RateLimited
                | Self::AgentError
                | Self::NoHostsAvailable
                | Self::HostUnavailable
                | Self::HostFull
                | Self::TimedOut
        )
    }
}

/// The body of every answer that is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

/// An error, as the server says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiError {
    /// The kind.
    pub code: ErrorCode,
    /// A sentence that says what to do.
    pub message: String,
    /// The id of the request, under which the server's log has it.
    #[serde(default)]
    pub request_id: String,
    /// Facts for programs; which ones depends on the code.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub details: Map<String, Value>,
}
