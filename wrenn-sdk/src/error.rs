//! Errors that a caller matches on.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde_json::{Map, Value};
use wrenn_api::error::{ApiError, ErrorCode, InvalidValue};
use wrenn_api::stream::Channel;

use crate::archive::ArchiveError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server answered that it does not do this.
    #[error("{message}{}", in_brackets(request_id.as_deref()))]
    Api {
        /// The kind, for programs.
        code: ErrorCode,
        /// A sentence that says what to do.
        message: String,
        /// The id under which the server's log has the request.
        request_id: Option<String>,
        /// Facts for programs; which ones depends on the code.
        details: Box<Map<String, Value>>,
        /// The HTTP status; 0 where the error came over a WebSocket.
        status: u16,
    },
    /// No server answers at this address.
    #[error("no server answers at {url}{}", start_hint(url))]
    Connect {
        /// The address.
        url: String,
        /// Why there is no connection.
        #[source]
        source: Source,
    },
    /// The connection broke before the answer was whole. The request may have taken
    /// effect.
    #[error("the connection to the server broke during {request}{}", in_brackets(request_id.as_deref()))]
    Disconnected {
        /// The request, like `POST /v1/sandboxes`.
        request: String,
        /// The id under which the server's log has the request, if it came that far.
        request_id: Option<String>,
        /// The error of the connection.
        #[source]
        source: Source,
    },
    /// The time-out of [`ClientBuilder::request_timeout`](crate::ClientBuilder::request_timeout)
    /// passed. The request may still take effect.
    #[error("the server did not answer {request} in time")]
    TimedOut {
        /// The request.
        request: String,
    },
    /// The answer makes no sense: another program listens there, or a much newer server.
    #[error("the answer to {request} is not one of a Wrenn server: {problem}{}", in_brackets(request_id.as_deref()))]
    Protocol {
        /// The request.
        request: String,
        /// The fault of the answer.
        problem: String,
        /// The id under which the server's log has the request.
        request_id: Option<String>,
    },
    /// Output was dropped before this client had it: it was away for too long, or another
    /// client read it.
    #[error("{} bytes of {channel} are lost: expected offset {expected}, got {got}", got.saturating_sub(*expected))]
    OutputLost {
        /// Where they came from.
        channel: Channel,
        /// The offset that came next.
        expected: u64,
        /// The offset that the server sent.
        got: u64,
    },
    /// The connection broke while input was on its way, and how much of it the command got
    /// is not known. Terminals are exempt: there, lost keys are typed again.
    #[error(
        "the connection broke with {in_doubt} bytes of input underway; the command may lack them"
    )]
    InputLost {
        /// Bytes that were sent and not acknowledged.
        in_doubt: u64,
    },
    /// The process has ended or was let go, and takes no more input.
    #[error("the process takes no more input")]
    InputClosed,
    /// The connection broke during a download, and when it was there again the file was another
    /// one.
    #[error("the file {path:?} of the sandbox changed while it was copied; copy it again")]
    FileChanged {
        /// The file.
        path: String,
    },
    /// The connection broke during an upload. Uploads are not resumed: the next one sends the
    /// file from its start. Until then the file of the sandbox is the old one, or the new one
    /// where the connection broke after the last byte; never a part.
    #[error("the connection to the server broke after {sent} bytes of an upload; start it again")]
    UploadInterrupted {
        /// Bytes that were sent. Not all of them have arrived.
        sent: u64,
        /// The error of the connection.
        #[source]
        source: Source,
    },
    /// A local file or directory cannot be used.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// The operation: `open`, `write`.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A reader or writer of the caller failed.
    #[error("cannot {operation}")]
    Stream {
        /// The operation.
        operation: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The archive that the sandbox sent was refused. Entries before the refused one stay.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A value of the caller cannot be used.
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    /// The file with the credentials cannot be read.
    #[error("{} holds no credentials that can be used; `wrenn up` writes it anew", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The fault of the file.
        #[source]
        source: Source,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] Source),
}

impl Error {
    /// The code of an error of the server.
    #[must_use]
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The id under which the server's log has the request.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Api { request_id, .. }
            | Self::Disconnected { request_id, .. }
            | Self::Protocol { request_id, .. } => request_id.as_deref(),
            _ => None,
        }
    }

    /// Facts that the server adds to an error, such as `status` of `invalid_state`.
    #[must_use]
    pub fn detail(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Api { details, .. } => details.get(name),
            _ => None,
        }
    }

    /// Whether what was asked for does not exist, or belongs to another team.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(ErrorCode::NotFound)
    }

    /// Whether the key is missing or not valid.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        self.code() == Some(ErrorCode::Unauthorized)
    }

    /// Whether the sandbox's status does not allow it; `detail("status")` has it.
    #[must_use]
    pub fn is_invalid_state(&self) -> bool {
        self.code() == Some(ErrorCode::InvalidState)
    }

    /// Whether a name is taken already.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(
            self.code(),
            Some(ErrorCode::Conflict | ErrorCode::TemplateNameTaken)
        )
    }

    /// Whether no server answers at the address.
    #[must_use]
    pub const fn is_connect(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }

    /// Whether the same call may succeed later without a change by the caller.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Api { code, .. } => code.is_retryable(),
            Self::Connect { .. } | Self::Disconnected { .. } | Self::TimedOut { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn api(error: ApiError, status: u16) -> Self {
        Self::Api {
            code: error.code,
            message: error.message,
            request_id: (!error.request_id.is_empty()).then_some(error.request_id),
            details: Box::new(error.details),
            status,
        }
    }

    /// An error message of a WebSocket.
    pub(crate) fn message(code: ErrorCode, message: String) -> Self {
        Self::Api {
            code,
            message,
            request_id: None,
            details: Box::default(),
            status: 0,
        }
    }

    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}

fn in_brackets(request_id: Option<&str>) -> impl fmt::Display + '_ {
    struct InBrackets<'a>(Option<&'a str>);
    impl fmt::Display for InBrackets<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0 {
                Some(id) => write!(f, " (request {id})"),
                None => Ok(()),
            }
        }
    }
    InBrackets(request_id)
}

fn start_hint(url: &str) -> &'static str {
    match reqwest::Url::parse(url) {
        Ok(url) if crate::transport::is_loopback(&url) => "; `wrenn up` starts one",
        _ => "; is WRENN_API_URL right?",
    }
}
