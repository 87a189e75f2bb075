//! Requests and answers: addresses, bodies, errors, retries.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use rand::RngCore as _;
use reqwest::{Response, Url};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wrenn_api::error::{ApiError, ErrorBody, ErrorCode, InvalidValue, shorten};

use crate::error::{Error, Result};
use crate::retry::{Failure, Retries};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const REQUEST_ID: &str = "x-request-id";
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The most of an error's body that is read.
const MAX_ERROR_BYTES: usize = 1 << 20;

/// A server, as all values of this crate share it.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) http: reqwest::Client,
    pub(crate) base: Url,
    pub(crate) key: Option<HeaderValue>,
    /// For WebSockets.
    pub(crate) tls: Arc<ClientConfig>,
    /// Whether the server ever answered.
    pub(crate) seen: AtomicBool,
}

/// A request to be sent, once or several times.
#[derive(Debug)]
pub(crate) struct Call {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Body,
    /// Whether a second request does no more than one.
    safe: bool,
}

#[derive(Debug)]
enum Body {
    None,
    Whole(Bytes),
    /// Can be sent only once.
    Stream(Option<reqwest::Body>),
}

impl Call {
    pub(crate) fn new(method: Method, url: Url) -> Self {
        Self {
            safe: method == Method::GET,
            method,
            url,
            headers: HeaderMap::new(),
            body: Body::None,
        }
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self> {
        let text = serde_json::to_vec(body).map_err(|error| Error::Protocol {
            request: self.name(),
            problem: format!("the request cannot be written as JSON: {error}"),
            request_id: None,
        })?;
        self.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body = Body::Whole(text.into());
        Ok(self)
    }

    pub(crate) fn bytes(mut self, body: Bytes) -> Self {
        self.body = Body::Whole(body);
        self
    }

    pub(crate) fn stream(mut self, body: reqwest::Body) -> Self {
        self.body = Body::Stream(Some(body));
        self
    }

    /// Only reads, though it is a POST.
    pub(crate) fn reads(mut self) -> Self {
        self.safe = true;
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Makes the call safe to repeat, under a key of the caller or a new one.
    pub(crate) fn idempotent(mut self, key: Option<&str>) -> Result<Self> {
        let value = match key {
            Some(key) => HeaderValue::from_str(key)
                .ok()
                .filter(|_| (1..=255).contains(&key.len()))
                .ok_or_else(|| InvalidValue {
                    what: "idempotency key",
                    value: shorten(key),
                    expected: "1 to 255 printable ASCII characters",
                })?,
            None => random_key(),
        };
        self.headers.insert(IDEMPOTENCY_KEY, value);
        self.safe = true;
        Ok(self)
    }

    /// The request as an error names it: without query, which may hold what is private.
    fn name(&self) -> String {
        format!("{} {}", self.method, self.url.path())
    }
}

fn random_key() -> HeaderValue {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

impl Transport {
    /// An address under the server's, from path segments that need not be escaped.
    pub(crate) fn url(&self, segments: &[&str]) -> Result<Url> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            for segment in segments {
                // These would silently name another route.
                if matches!(*segment, "" | "." | "..") {
                    return Err(InvalidValue {
                        what: "id or name",
                        value: shorten(segment),
                        expected: "letters, digits and dashes",
                    }
                    .into());
                }
                path.push(segment);
            }
        }
        Ok(url)
    }

    /// Sends a request and gives the answer if it is a success.
    pub(crate) async fn send(&self, mut call: Call) -> Result<Response> {
        let mut retries = Retries::new(call.safe);
        loop {
            let (error, failure) = match self.attempt(&mut call).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            let replayable = !matches!(call.body, Body::Stream(_));
            let Some(wait) = failure
                .filter(|_| replayable)
                .and_then(|failure| retries.next(failure))
            else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, request = call.name(), "repeating a request");
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, call: &mut Call) -> Result<Response, (Error, Option<Failure>)> {
        let mut request = self
            .http
            .request(call.method.clone(), call.url.clone())
            .headers(call.headers.clone());
        if let Some(key) = &self.key {
            request = request.header(API_KEY, key.clone());
        }
        request = match &mut call.body {
            Body::None => request,
            Body::Whole(bytes) => request.body(bytes.clone()),
            Body::Stream(stream) => request.body(stream.take().unwrap_or_default()),
        };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Err(self.broken(call, error)),
        };
        self.seen.store(true, Ordering::Relaxed);
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let headers = response.headers().clone();
        let error = match read_error(response).await {
            Ok(body) => error_of(status, &headers, &body),
            Err(error) => return Err(self.broken(call, error)),
        };
        let code = error.code().unwrap_or(ErrorCode::Unknown);
        let failure = Failure::answer(status, code, &headers);
        Err((error, Some(failure)))
    }

    fn broken(&self, call: &Call, error: reqwest::Error) -> (Error, Option<Failure>) {
        if error.is_connect() {
            let seen_before = self.seen.load(Ordering::Relaxed);
            return (
                self.not_connected(error),
                Some(Failure::NotConnected { seen_before }),
            );
        }
        if error.is_timeout() {
            let request = call.name();
            return (Error::TimedOut { request }, None);
        }
        (
            Error::Disconnected {
                request: call.name(),
                request_id: None,
                source: error.without_url().into(),
            },
            Some(Failure::Disconnected),
        )
    }

    fn not_connected(&self, error: reqwest::Error) -> Error {
        Error::Connect {
            url: self.address(),
            source: error.without_url().into(),
        }
    }

    /// The server's address for messages.
    pub(crate) fn address(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// Sends a request whose answer is JSON.
    pub(crate) async fn fetch<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let request = call.name();
        let response = self.send(call).await?;
        let request_id = request_id(response.headers());
        let body = whole(&request, response).await?;
        serde_json::from_slice(&body).map_err(|error| Error::Protocol {
            request,
            problem: error.to_string(),
            request_id,
        })
    }
}

/// The whole body of an answer.
pub(crate) async fn whole(request: &str, response: Response) -> Result<Bytes> {
    let request_id = request_id(response.headers());
    response.bytes().await.map_err(|error| Error::Disconnected {
        request: request.to_owned(),
        request_id,
        source: error.without_url().into(),
    })
}

pub(crate) fn request_id(headers: &HeaderMap) -> Option<String> {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

async fn read_error(mut response: Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ERROR_BYTES {
            break;
        }
    }
    Ok(body)
}

/// The error of an answer, of a Wrenn server or another program.
pub(crate) fn error_of(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    if let Ok(ErrorBody { error }) = serde_json::from_slice(body) {
        return Error::api(error, status.as_u16());
    }
    // A proxy, or another program altogether.
    let text = String::from_utf8_lossy(&body[..body.len().min(512)]);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let code = match status.as_u16() {
        401 => ErrorCode::Unauthorized,
        _ => ErrorCode::Unknown,
    };
    let error = ApiError {
        code,
        message: format!("the server answered {status}: {}", shorten(&text)),
        request_id: request_id(headers).unwrap_or_default(),
        details: serde_json::Map::new(),
    };
    Error::api(error, status.as_u16())
}

/// Whether an address is this machine's own.
pub(crate) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}
