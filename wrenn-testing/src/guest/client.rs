//! Talks to the daemon of a guest, and gives its errors the codes that an agent gives them.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, BodyStream, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use wrenn_proto::connectrpc::client::{CallOptions, ClientBody, ClientConfig, ServiceTransport};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::filesystem::{self, EntryInfo, FilesystemClient};
use wrenn_proto::hostagent::Reason;
use wrenn_proto::http::{
    ACCESS_TOKEN_HEADER, ErrorBody, FILE_MODE_HEADER, InitRequest, KEEPALIVE_PING_HEADER, Metrics,
    Unpacked,
};
use wrenn_proto::process::__buffa::oneof::process_event::Event;
use wrenn_proto::process::__buffa::oneof::process_selector::Selector;
use wrenn_proto::process::{
    CloseStdinRequest, ConnectRequest, ListRequest, ProcessClient, ProcessInfo, ProcessSelector,
    SendSignalRequest, Signal, StartRequest, StreamInputRequest, UpdateRequest,
};
use wrenn_proto::reason;

use super::files::GuestFiles;
use crate::errors::refuse;

/// The longest answer that is read whole; files are streamed instead.
const MAX_ANSWER: usize = 1 << 20;
const KEEPALIVE_SECONDS: &str = "30";

/// What of a guest's messages may wait in the kernel, in bytes: what is on its way when a
/// connection breaks must be in what the guest keeps.
const RECEIVE_BUFFER: usize = 128 << 10;

/// Connections of the RPCs.
type Transport = ServiceTransport<HyperClient<HttpConnector, ClientBody>>;
type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Answer<T> = Result<T, ConnectError>;
/// What a process tells.
pub(crate) type ProcessEvents = BoxStream<'static, Answer<Event>>;

/// What a request is about, which says what was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Process,
    Path,
}

/// A file that is being read.
pub(crate) struct ReadFile {
    /// Where it is known.
    pub(crate) total_size: Option<u64>,
    pub(crate) chunks: BoxStream<'static, Answer<Bytes>>,
}

/// A client of one guest's daemon. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    token: String,
    paths: GuestFiles,
    /// Whom operations on files act as; empty for the default user.
    user: String,
    processes: ProcessClient<Transport>,
    files: FilesystemClient<Transport>,
    http: HyperClient<HttpConnector, Body>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Reads a generated stream to its end.
macro_rules! stream_of {
    ($about:expr, $stream:expr, $event:expr) => {
        futures::stream::try_unfold($stream, move |mut stream| async move {
            loop {
                let message = stream
                    .message()
                    .await
                    .map_err(|error| translate($about, error))?;
                let Some(message) = message else {
                    return Ok(None);
                };
                if let Some(event) = $event(message.to_owned_message()) {
                    return Ok(Some((event, stream)));
                }
            }
        })
        .boxed()
    };
}

impl Client {
    pub(super) fn new(address: SocketAddr, token: String, paths: GuestFiles) -> Self {
        let uri = http::Uri::builder()
            .scheme("http")
            .authority(address.to_string())
            .path_and_query("/")
            .build()
            .unwrap_or_default();
        let mut headers = HeaderMap::new();
        // A token is made of the characters of base64.
        if let Ok(value) = HeaderValue::from_str(&token) {
            headers.insert(ACCESS_TOKEN_HEADER, value);
        }
        let config = ClientConfig::new(uri).proto().with_default_headers(headers);
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut bounded = connector.clone();
        bounded.set_recv_buffer_size(Some(RECEIVE_BUFFER));
        let transport =
            ServiceTransport::new(HyperClient::builder(TokioExecutor::new()).build(bounded));
        Self {
            address,
            token,
            paths,
            user: String::new(),
            processes: ProcessClient::new(transport.clone(), config.clone()),
            files: FilesystemClient::new(transport, config),
            http: HyperClient::builder(TokioExecutor::new()).build(connector),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// The same client, whose operations on files act as `user`.
    pub(crate) fn as_user(&self, user: &str) -> Self {
        Self {
            user: user.to_owned(),
            ..self.clone()
        }
    }

    /// A path of a request, as the daemon takes it.
    pub(crate) fn resolve(&self, path: &str) -> String {
        self.paths.resolve(path)
    }

    // Processes

    pub(crate) async fn start(
        &self,
        request: StartRequest,
        user: &str,
        timeout: Option<std::time::Duration>,
    ) -> Answer<ProcessEvents> {
        let mut options = keep_alive()?;
        if !user.is_empty() {
            options = options.try_with_header(header::AUTHORIZATION, basic(user))?;
        }
        if let Some(timeout) = timeout {
            options = options.with_timeout(timeout);
        }
        let started = self.processes.start_with_options(request, options).await;
        let stream = started.map_err(|error| translate(About::Process, error))?;
        Ok(stream_of!(
            About::Process,
            stream,
            |message: wrenn_proto::process::StartResponse| message.event.into_option()?.event
        ))
    }

    pub(crate) async fn connect(&self, request: ConnectRequest) -> Answer<ProcessEvents> {
        let options = keep_alive()?;
        let connected = self.processes.connect_with_options(request, options).await;
        let stream = connected.map_err(|error| translate(About::Process, error))?;
        Ok(stream_of!(
            About::Process,
            stream,
            |message: wrenn_proto::process::ConnectResponse| message.event.into_option()?.event
        ))
    }

    pub(crate) async fn list_processes(&self) -> Answer<Vec<ProcessInfo>> {
        let listed = self.processes.list(ListRequest::default()).await;
        let listed = listed.map_err(|error| translate(About::Process, error))?;
        Ok(listed.into_owned().processes)
    }

    pub(crate) async fn signal(&self, process: Selector, signal: Signal) -> Answer<()> {
        let request = SendSignalRequest {
            process: selector(process).into(),
            signal: signal.into(),
        };
        let sent = self.processes.send_signal(request).await;
        sent.map(drop)
            .map_err(|error| translate(About::Process, error))
    }

    pub(crate) async fn update(&self, request: UpdateRequest) -> Answer<()> {
        let updated = self.processes.update(request).await;
        updated
            .map(drop)
            .map_err(|error| translate(About::Process, error))
    }

    pub(crate) async fn stream_input(
        &self,
        requests: impl futures::Stream<Item = StreamInputRequest> + Send + 'static,
    ) -> Answer<()> {
        let sent = self.processes.stream_input(requests).await;
        sent.map(drop)
            .map_err(|error| translate(About::Process, error))
    }

    pub(crate) async fn close_stdin(&self, process: Selector) -> Answer<()> {
        let request = CloseStdinRequest {
            process: selector(process).into(),
        };
        let closed = self.processes.close_stdin(request).await;
        closed
            .map(drop)
            .map_err(|error| translate(About::Process, error))
    }

    // Files

    pub(crate) async fn stat(&self, path: &str) -> Answer<Option<EntryInfo>> {
        let request = filesystem::StatRequest {
            path: self.resolve(path),
        };
        let found = self.files.stat_with_options(request, self.acting()?).await;
        let found = found.map_err(|error| translate(About::Path, error))?;
        Ok(found.into_owned().entry.into_option())
    }

    pub(crate) async fn list_dir(&self, path: &str, depth: u32) -> Answer<Vec<EntryInfo>> {
        let request = filesystem::ListDirRequest {
            path: self.resolve(path),
            depth,
        };
        let acting = self.acting()?;
        let listed = self.files.list_dir_with_options(request, acting).await;
        let listed = listed.map_err(|error| translate(About::Path, error))?;
        Ok(listed.into_owned().entries)
    }

    pub(crate) async fn make_dir(&self, path: &str) -> Answer<()> {
        let request = filesystem::MakeDirRequest {
            path: self.resolve(path),
        };
        let acting = self.acting()?;
        let made = self.files.make_dir_with_options(request, acting).await;
        made.map(drop)
            .map_err(|error| translate(About::Path, error))
    }

    pub(crate) async fn rename(&self, from: &str, to: &str) -> Answer<()> {
        let request = filesystem::MoveRequest {
            source: self.resolve(from),
            destination: self.resolve(to),
        };
        let moved = self
            .files
            .r#move_with_options(request, self.acting()?)
            .await;
        moved
            .map(drop)
            .map_err(|error| translate(About::Path, error))
    }

    pub(crate) async fn remove(&self, path: &str) -> Answer<()> {
        let request = filesystem::RemoveRequest {
            path: self.resolve(path),
        };
        let acting = self.acting()?;
        let removed = self.files.remove_with_options(request, acting).await;
        removed
            .map(drop)
            .map_err(|error| translate(About::Path, error))
    }

    /// Changes of a directory; the first event says that none is missed from then on.
    pub(crate) async fn watch(
        &self,
        path: &str,
        recursive: bool,
    ) -> Answer<BoxStream<'static, Answer<filesystem::watch_dir_response::Event>>> {
        let request = filesystem::WatchDirRequest {
            path: self.resolve(path),
            recursive,
            ..filesystem::WatchDirRequest::default()
        };
        let options = self
            .acting()?
            .try_with_header(KEEPALIVE_PING_HEADER, KEEPALIVE_SECONDS)?;
        let watched = self.files.watch_dir_with_options(request, options).await;
        let stream = watched.map_err(|error| translate(About::Path, error))?;
        Ok(stream_of!(
            About::Path,
            stream,
            |message: filesystem::WatchDirResponse| message.event
        ))
    }

    fn acting(&self) -> Answer<CallOptions> {
        let options = CallOptions::default();
        if self.user.is_empty() {
            return Ok(options);
        }
        options.try_with_header(header::AUTHORIZATION, basic(&self.user))
    }

    // Plain HTTP

    pub(crate) async fn init(&self, request: &InitRequest) -> Answer<()> {
        let json = serde_json::to_vec(request)
            .map_err(|error| ConnectError::internal(error.to_string()))?;
        let headers = [(header::CONTENT_TYPE, "application/json")];
        let response = self
            .send(Method::POST, "/init", &headers, full(json))
            .await?;
        collect(response).await.map(drop)
    }

    pub(crate) async fn metrics(&self) -> Answer<Metrics> {
        let response = self
            .send(Method::GET, "/metrics", &[], full(Bytes::new()))
            .await?;
        let body = collect(response).await?;
        serde_json::from_slice(&body).map_err(|error| unavailable(&error))
    }

    /// Opens a file, from `offset` on and `length` bytes of it, or all that follows.
    pub(crate) async fn read_file(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Answer<ReadFile> {
        if length == Some(0) {
            return self.read_nothing(path, offset).await;
        }
        let last = length.map(|length| offset.saturating_add(length - 1).to_string());
        let range = format!("bytes={offset}-{}", last.unwrap_or_default());
        let mut headers = Vec::new();
        if offset > 0 || length.is_some() {
            headers.push((header::RANGE, range.as_str()));
        }
        let target = self.target("/files", path);
        let response = self
            .request(Method::GET, &target, &headers, full(Bytes::new()))
            .await?;
        let total_size = total_size(&response);
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && total_size == Some(offset) {
            return Ok(ReadFile {
                total_size,
                chunks: futures::stream::empty().boxed(),
            });
        }
        let response = succeeded(response).await?;
        Ok(ReadFile {
            total_size,
            chunks: chunks(response),
        })
    }

    async fn read_nothing(&self, path: &str, offset: u64) -> Answer<ReadFile> {
        let entry = self.stat(path).await?;
        let size = entry.and_then(|entry| u64::try_from(entry.size).ok());
        if size.is_some_and(|size| offset > size) {
            let message = format!("the range lies outside of '{path}'");
            return Err(refuse(
                ErrorCode::OutOfRange,
                Reason::REASON_INVALID,
                message,
            ));
        }
        Ok(ReadFile {
            total_size: size,
            chunks: futures::stream::empty().boxed(),
        })
    }

    pub(crate) async fn write_file(
        &self,
        path: &str,
        mode: Option<u32>,
        chunks: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Answer<()> {
        let target = self.target("/files", path);
        let response = self.upload(&target, mode, chunks).await?;
        collect(response).await.map(drop)
    }

    /// A directory as a tar archive.
    pub(crate) async fn read_archive(
        &self,
        path: &str,
    ) -> Answer<BoxStream<'static, Answer<Bytes>>> {
        let target = self.target("/archive", path);
        let response = self
            .send(Method::GET, &target, &[], full(Bytes::new()))
            .await?;
        Ok(chunks(response))
    }

    /// Unpacks a tar archive, and says how many entries it had.
    pub(crate) async fn write_archive(
        &self,
        path: &str,
        chunks: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Answer<u64> {
        let response = self
            .upload(&self.target("/archive", path), None, chunks)
            .await?;
        let body = collect(response).await?;
        let unpacked: Unpacked =
            serde_json::from_slice(&body).map_err(|error| unavailable(&error))?;
        Ok(unpacked.entries)
    }

    async fn upload(
        &self,
        target: &str,
        mode: Option<u32>,
        chunks: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Answer<Response<Incoming>> {
        let body = StreamBody::new(chunks.map_ok(Frame::data));
        let mode = mode.map(|mode| format!("{mode:o}"));
        let mut headers = vec![(header::CONTENT_TYPE, "application/octet-stream")];
        if let Some(mode) = &mode {
            headers.push((header::HeaderName::from_static(FILE_MODE_HEADER), mode));
        }
        self.send(Method::POST, target, &headers, body.boxed_unsync())
            .await
    }

    fn target(&self, route: &str, path: &str) -> String {
        let mut target = format!("{route}?path={}", escape(&self.resolve(path)));
        if !self.user.is_empty() {
            target.push_str("&username=");
            target.push_str(&escape(&self.user));
        }
        target
    }

    /// Sends a request, and turns an answer that is no success into an error.
    async fn send(
        &self,
        method: Method,
        target: &str,
        headers: &[(header::HeaderName, &str)],
        body: Body,
    ) -> Answer<Response<Incoming>> {
        succeeded(self.request(method, target, headers, body).await?).await
    }

    async fn request(
        &self,
        method: Method,
        target: &str,
        headers: &[(header::HeaderName, &str)],
        body: Body,
    ) -> Answer<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{target}", self.address))
            .header(ACCESS_TOKEN_HEADER, &self.token);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request
            .body(body)
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
        let sent = self.http.request(request).await;
        sent.map_err(|error| unavailable(&error))
    }
}

async fn succeeded(response: Response<Incoming>) -> Answer<Response<Incoming>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = collect(response).await.unwrap_or_default();
    let message = serde_json::from_slice::<ErrorBody>(&body).map_or_else(
        |_| String::from_utf8_lossy(&body).into_owned(),
        |error| error.message,
    );
    let (code, reason) = match status.as_u16() {
        400 | 401 => (ErrorCode::InvalidArgument, Reason::REASON_INVALID),
        403 => (
            ErrorCode::PermissionDenied,
            Reason::REASON_GUEST_PERMISSION_DENIED,
        ),
        404 => (ErrorCode::NotFound, Reason::REASON_PATH_NOT_FOUND),
        416 => (ErrorCode::OutOfRange, Reason::REASON_INVALID),
        429 | 507 => (ErrorCode::ResourceExhausted, Reason::REASON_GUEST_DISK_FULL),
        502..=504 => (ErrorCode::Unavailable, Reason::REASON_GUEST_UNAVAILABLE),
        _ => (ErrorCode::Unknown, Reason::REASON_UNSPECIFIED),
    };
    Err(refuse(code, reason, message))
}

/// The size of the whole file, by the head of an answer.
fn total_size(response: &Response<Incoming>) -> Option<u64> {
    let header = |name| response.headers().get(name)?.to_str().ok();
    match header(header::CONTENT_RANGE) {
        Some(range) => range.rsplit_once('/')?.1.parse().ok(),
        None => header(header::CONTENT_LENGTH)?.parse().ok(),
    }
}

fn chunks(response: Response<Incoming>) -> BoxStream<'static, Answer<Bytes>> {
    let frames = BodyStream::new(response.into_body());
    frames
        .filter_map(|frame| async {
            match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(unavailable(&error))),
            }
        })
        .boxed()
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

async fn collect(response: Response<Incoming>) -> Answer<Bytes> {
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(unavailable(&*error)),
    }
}

/// The guest broke off, or answered nonsense.
fn unavailable(error: &(dyn std::error::Error + 'static)) -> ConnectError {
    tracing::debug!(error, "failed to reach a guest");
    refuse(
        ErrorCode::Unavailable,
        Reason::REASON_GUEST_UNAVAILABLE,
        "the guest does not answer as it should; try again",
    )
}

/// A refusal of the daemon, as an agent passes it on.
fn translate(about: About, error: ConnectError) -> ConnectError {
    let code = match error.code {
        ErrorCode::Unauthenticated => ErrorCode::InvalidArgument,
        ErrorCode::Internal => ErrorCode::Unknown,
        code => code,
    };
    let given = reason::of(&error).and_then(|info| info.reason.as_known());
    let reason = given.unwrap_or(match (code, about) {
        (ErrorCode::InvalidArgument | ErrorCode::OutOfRange, _) => Reason::REASON_INVALID,
        (ErrorCode::NotFound, About::Process) => Reason::REASON_PROCESS_NOT_FOUND,
        (ErrorCode::NotFound, About::Path) => Reason::REASON_PATH_NOT_FOUND,
        (ErrorCode::AlreadyExists, _) => Reason::REASON_EXISTS,
        (ErrorCode::PermissionDenied, _) => Reason::REASON_GUEST_PERMISSION_DENIED,
        (ErrorCode::ResourceExhausted, About::Path) => Reason::REASON_GUEST_DISK_FULL,
        (ErrorCode::Unavailable, _) => Reason::REASON_GUEST_UNAVAILABLE,
        _ => Reason::REASON_UNSPECIFIED,
    });
    let message = error.message.clone().unwrap_or_else(|| error.to_string());
    refuse(code, reason, message)
}

fn selector(selector: Selector) -> ProcessSelector {
    ProcessSelector {
        selector: Some(selector),
    }
}

fn keep_alive() -> Answer<CallOptions> {
    CallOptions::default().try_with_header(KEEPALIVE_PING_HEADER, KEEPALIVE_SECONDS)
}

fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:")))
}

/// All but the unreserved characters of RFC 3986 and the slash.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}
