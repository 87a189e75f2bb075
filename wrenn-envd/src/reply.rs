//! Answers of the plain HTTP routes, and the one place where failures get their status.

use std::io;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wrenn_proto::http::ErrorBody;

use crate::auth::IdentifyError;

pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// JSON bodies of requests are small; what is larger is a mistake.
const MAX_JSON: usize = 4 * 1024 * 1024;

/// An answer other than the one asked for.
#[derive(Debug)]
pub struct HttpError {
    pub status: StatusCode,
    pub message: String,
}

impl HttpError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// What became of something done to files: `what` says what was tried, with the path.
    pub fn from_io(what: &str, error: &io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                return Self::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    format!("{what}: not enough disk space available"),
                );
            }
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::Unsupported => StatusCode::BAD_REQUEST,
            _ if error.raw_os_error() == Some(libc::ELOOP) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, format!("{what}: {error}"))
    }

    pub fn into_response(self) -> Response<Body> {
        if self.status.is_server_error() {
            tracing::warn!(
                status = self.status.as_u16(),
                message = self.message,
                "request failed"
            );
        }
        let body = ErrorBody {
            code: self.status.as_u16(),
            message: self.message,
        };
        json_with_status(self.status, &body)
    }
}

impl From<IdentifyError> for HttpError {
    fn from(error: IdentifyError) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error.to_string())
    }
}

pub fn boxed<B>(body: B) -> Body
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    body.map_err(Into::into).boxed_unsync()
}

pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(boxed(Empty::new()));
    *response.status_mut() = status;
    response
}

pub fn json(value: &impl Serialize) -> Result<Response<Body>, HttpError> {
    Ok(json_with_status(StatusCode::OK, value))
}

pub fn json_with_status(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // Our own types always serialise; `null` would show the mistake.
    let text = serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec());
    let mut response = Response::new(boxed(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// How much of a body is taken that is not wanted any more.
const MAX_DRAINED: usize = 1 << 30;

/// Takes the rest of a body, so that its sender gets to the answer: one that still sends when
/// the connection closes may never read why.
pub async fn drain(body: &mut Incoming) {
    let mut left = MAX_DRAINED;
    while left > 0 {
        match body.frame().await {
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, Bytes::len);
                left = left.saturating_sub(size);
            }
            Some(Err(_)) | None => return,
        }
    }
}

/// Reads a JSON body as a whole. An empty one is `None`.
pub async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<Option<T>, HttpError> {
    let bytes = Limited::new(body, MAX_JSON)
        .collect()
        .await
        .map_err(|error| HttpError::bad_request(format!("cannot read the request: {error}")))?
        .to_bytes();
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| HttpError::bad_request(format!("cannot understand the request: {error}")))
}
