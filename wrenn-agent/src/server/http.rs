//! Listens, and serves each connection until it closes: HTTP/1.1 and HTTP/2 (prior
//! knowledge) on one port.
//!
//! | path | what | wants the token |
//! |---|---|---|
//! | `POST /hostagent.v1.HostAgent/…` | the RPCs | yes |
//! | `GET /metrics` | for Prometheus | but on a listener of its own |
//! | `GET /healthz` | `ok` while the agent serves | no |
//!
//! Every request passes [`Server::admit`] first, so a route that is added here is protected
//! without anybody thinking of it.
//!
//! No stream has a limit in time. When the agent stops, connections take no new request;
//! those under way get [`GRACE`] to be answered.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service as _;
use wrenn_proto::connectrpc::{ConnectError, ConnectRpcService, Limits, Router as RpcRouter};
use wrenn_proto::hostagent::HOST_AGENT_SERVICE_NAME;

use super::{Service, State};
use crate::access::{Denied, Guard};
use crate::{errors, metrics};

/// How long a call that is under way may take when the agent stops. Creating and
/// destroying go on without their callers.
const GRACE: Duration = Duration::from_secs(10);
/// How long a caller may take over the headers of a request.
const HEADERS_DEADLINE: Duration = Duration::from_secs(30);
/// Requests of one connection at a time. Most are streams that hardly say anything.
const MAX_STREAMS: u32 = 4096;
/// What may be on its way to us, for one stream and for a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Bytes that may wait here for a caller, for one stream. A caller that follows a command and
/// loses its connection asks for the bytes on their way again, and the guest keeps only so much: the
/// documentation of wrenn-envd's `process` module has the sum.
const SEND_BUFFER: usize = 64 << 10;
/// A message holds a file of 16 MiB, in JSON a third more, and what is said about it.
const MAX_MESSAGE: usize = 24 << 20;

type BodyError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BodyError>;

/// What a port offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    /// RPCs, metrics and health.
    Everything,
    /// Metrics and health.
    MetricsOnly,
}

/// What answers requests.
#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<State>,
    rpc: Option<ConnectRpcService>,
}

impl Server {
    pub(crate) fn new(state: Arc<State>, face: Face) -> Self {
        let rpc = (face == Face::Everything).then(|| {
            let services = RpcRouter::new().add_service(Arc::new(Service(Arc::clone(&state))));
            let limits = Limits::default()
                .with_max_request_body_size(MAX_MESSAGE)
                .with_max_message_size(MAX_MESSAGE);
            ConnectRpcService::new(services).with_limits(limits)
        });
        Self { state, rpc }
    }

    /// Serves until the agent stops.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let shutdown = self.state.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, _peer)) => {
                    let server = self.clone();
                    self.state
                        .tasks
                        .spawn(async move { server.serve_connection(stream).await });
                }
                Err(error) => {
                    // Out of descriptors, most likely: those in use must close first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve_connection(self, stream: TcpStream) {
        // Without either it works, only slower.
        stream.set_nodelay(true).ok();
        notice_dead_peers(&stream).ok();
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let shutdown = self.state.shutdown.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request, local.ip()).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_DEADLINE);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_concurrent_streams(MAX_STREAMS);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(GRACE, connection).await {
                    Ok(served) => served,
                    Err(_) => {
                        tracing::info!("a call is cut off, since the agent stops");
                        return;
                    }
                }
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>, local: IpAddr) -> Response<Body> {
        let (parts, body) = request.into_parts();
        match self.admit(&parts, local) {
            Ok(()) => self.route(Request::from_parts(parts, body)).await,
            Err(denied) => refuse(denied, &parts),
        }
    }

    /// Decides about one request by its head alone, before anything else looks at it.
    fn admit(&self, parts: &Parts, local: IpAddr) -> Result<(), Denied> {
        let guard = &self.state.guard;
        guard.check_host(parts, local)?;
        let path = parts.uri.path();
        let open = match path {
            "/healthz" => true,
            // There is nothing else on a listener for metrics.
            _ => self.rpc.is_none(),
        };
        if open {
            return Ok(());
        }
        if is_rpc(path) {
            Guard::check_origin(&parts.headers)?;
        }
        guard.check_token(&parts.headers)
    }

    async fn route(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::GET | &Method::HEAD, "/healthz") => text(StatusCode::OK, "ok\n"),
            (&Method::GET, "/metrics") => match self.state.metrics.render(&self.state.fleet) {
                Ok(metrics) => with_type(StatusCode::OK, metrics::CONTENT_TYPE, metrics),
                Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "cannot write metrics\n"),
            },
            (_, "/healthz" | "/metrics") => text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n"),
            _ => match &self.rpc {
                Some(rpc) if is_rpc(path) => self.call(rpc.clone(), request).await,
                _ => text(StatusCode::NOT_FOUND, "no such path\n"),
            },
        }
    }

    async fn call(&self, mut rpc: ConnectRpcService, request: Request<Incoming>) -> Response<Body> {
        if let Some(error) = too_long(request.uri().path(), request.headers()) {
            let body = String::from_utf8_lossy(&error.to_json()).into_owned();
            return with_type(error.http_status(), "application/json", body);
        }
        match rpc.call(request).await {
            Ok(response) => response.map(|body| body.map_err(BodyError::from).boxed_unsync()),
            Err(never) => match never {},
        }
    }
}

/// The answer to a request that is not admitted. An RPC's caller learns of the token in its own
/// protocol; a request that a browser may have sent gets a status that no protocol hides.
fn refuse(denied: Denied, parts: &Parts) -> Response<Body> {
    tracing::debug!(path = parts.uri.path(), %denied, "a request is refused");
    match denied {
        Denied::Host | Denied::Origin => {
            let body = String::from_utf8_lossy(&errors::denied(denied).to_json()).into_owned();
            with_type(StatusCode::FORBIDDEN, "application/json", body)
        }
        Denied::NoToken | Denied::WrongToken if is_rpc(parts.uri.path()) => errors::denied(denied)
            .into_http_response(&parts.headers)
            .map(|body| body.map_err(BodyError::from).boxed_unsync()),
        Denied::NoToken | Denied::WrongToken => {
            let mut response = text(StatusCode::UNAUTHORIZED, &format!("{denied}\n"));
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

fn is_rpc(path: &str) -> bool {
    path.strip_prefix('/')
        .and_then(|path| path.split('/').next())
        .is_some_and(|service| service == HOST_AGENT_SERVICE_NAME)
}

/// Refuses a whole-file call that announces more than can be taken, in words that name the
/// way for it. One that does not announce it is refused by the library, in plainer words.
fn too_long(path: &str, headers: &HeaderMap) -> Option<ConnectError> {
    let method = path.rsplit('/').next()?;
    let instead = match method {
        "WriteFile" => "StreamWriteFile",
        "Exec" => "ExecStream",
        _ => return None,
    };
    let announced: usize = headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    (announced > MAX_MESSAGE).then(|| super::input::too_large(method, instead))
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", text.to_owned())
}

fn with_type(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A caller that vanished without a word would hold its streams open for ever, and its
/// sandboxes in use. Time is not limited while data waits to be taken.
fn notice_dead_peers(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    Ok(sockopt::set_tcp_keepcnt(stream, 4)?)
}
