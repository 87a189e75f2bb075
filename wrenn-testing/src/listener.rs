//! Listens for callers of a fake host: HTTP/1.1 and HTTP/2 (prior knowledge) on one port, as
//! an agent does.
//!
//! A call whose connection shall break is marked with [`Wire`], which its answer is checked
//! against: on HTTP/2 its stream alone is reset.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;
use wrenn_proto::connectrpc::{ConnectError, ConnectRpcService, Limits, Router};
use wrenn_proto::hostagent::{HOST_AGENT_SERVICE_NAME, Reason};

use crate::errors::refuse;
use crate::host::Host;
use crate::service::Service;

/// A message holds a file of 16 MiB, in JSON a third more, and what is said about it.
const MAX_MESSAGE: usize = 24 << 20;
const MAX_STREAMS: u32 = 4096;
/// What may be on its way to us, for one stream and for a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// What may wait here for a caller, for one stream: less than a guest keeps of it.
const SEND_BUFFER: usize = 64 << 10;

type BodyError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Whether the connection of one call is to break.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wire(Arc<AtomicBool>);

impl Wire {
    pub(crate) fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_cut(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the test wants this connection to break")]
struct Cut;

/// The port of a fake host. It is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    address: SocketAddr,
    link: Arc<Link>,
    accepting: JoinHandle<()>,
}

/// Whether the host can be reached.
#[derive(Debug)]
struct Link {
    /// Ends all connections; `None` while there can be none.
    connections: Mutex<Option<CancellationToken>>,
}

impl Link {
    fn set(&self, connections: Option<CancellationToken>) {
        let mut current = self.lock();
        if let Some(connections) = std::mem::replace(&mut *current, connections) {
            connections.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<CancellationToken>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    pub(crate) async fn start(host: Arc<Host>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let link = Arc::new(Link {
            connections: Mutex::new(Some(CancellationToken::new())),
        });
        let service = Arc::new(Service::new(Arc::clone(&host)));
        let limits = Limits::default()
            .with_max_request_body_size(MAX_MESSAGE)
            .with_max_message_size(MAX_MESSAGE);
        let server = Server {
            rpc: ConnectRpcService::new(Router::new().add_service(service)).with_limits(limits),
            host,
        };
        let accepting = tokio::spawn(accept(listener, Arc::clone(&link), server));
        Ok(Self {
            address,
            link,
            accepting,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn disconnect(&self) {
        self.link.set(None);
    }

    pub(crate) fn reconnect(&self) {
        let mut current = self.link.lock();
        if current.is_none() {
            *current = Some(CancellationToken::new());
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.accepting.abort();
        self.link.set(None);
    }
}

async fn accept(listener: TcpListener, link: Arc<Link>, server: Server) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _peer)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: those in use must close first.
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connections = link.lock().clone();
        match connections {
            Some(connections) => {
                let serving = server.clone().serve(stream, connections);
                tokio::spawn(serving);
            }
            None => reset(&stream),
        }
    }
}

/// Closing it then tells the peer that the connection was reset.
fn reset(stream: &TcpStream) {
    sockopt::set_socket_linger(stream, Some(Duration::ZERO)).ok();
}

#[derive(Clone)]
struct Server {
    host: Arc<Host>,
    rpc: ConnectRpcService,
}

impl Server {
    async fn serve(self, stream: TcpStream, connections: CancellationToken) {
        stream.set_nodelay(true).ok();
        if connections.is_cancelled() {
            return reset(&stream);
        }
        // It has no linger time unless it is cut: an answer must not be lost.
        let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(&stream, 0) else {
            return;
        };
        let service = service_fn(move |request: Request<Incoming>| {
            let server = self.clone();
            async move { server.answer(request).await }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_concurrent_streams(MAX_STREAMS);
        tokio::select! {
            served = builder.serve_connection(TokioIo::new(stream), service) => {
                if let Err(error) = served {
                    tracing::debug!(%error, "a connection ended early");
                }
            }
            () = connections.cancelled() => {
                sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).ok();
            }
        }
    }

    async fn answer(mut self, mut request: Request<Incoming>) -> Result<Response<Body>, Cut> {
        let path = request.uri().path();
        let is_rpc = path
            .strip_prefix('/')
            .and_then(|path| path.split('/').next())
            .is_some_and(|service| service == HOST_AGENT_SERVICE_NAME);
        if !is_rpc {
            return Ok(match (request.method(), path) {
                (&Method::GET, "/healthz") => text(StatusCode::OK, "ok\n"),
                _ => text(StatusCode::NOT_FOUND, "no such path\n"),
            });
        }
        if let Err(denied) = self.admit(&request) {
            let response = denied.into_http_response(request.headers());
            return Ok(response.map(|body| body.map_err(BodyError::from).boxed_unsync()));
        }
        let wire = Wire::default();
        request.extensions_mut().insert(wire.clone());
        let response = match self.rpc.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if wire.is_cut() {
            return Err(Cut);
        }
        Ok(response.map(|body| {
            let frames = TryStreamExt::map_err(BodyStream::new(body), BodyError::from);
            let checked = frames.and_then(move |frame| {
                let is_cut = wire.is_cut();
                futures::future::ready(if is_cut { Err(Cut.into()) } else { Ok(frame) })
            });
            StreamBody::new(checked).boxed_unsync()
        }))
    }

    fn admit(&self, request: &Request<Incoming>) -> Result<(), ConnectError> {
        let Some(token) = &self.host.config.token else {
            return Ok(());
        };
        let sent = request.headers().get(AUTHORIZATION);
        let sent = sent.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if sent == Some(token) {
            return Ok(());
        }
        Err(refuse(
            wrenn_proto::connectrpc::ErrorCode::Unauthenticated,
            Reason::REASON_UNAUTHENTICATED,
            "send the agent's token as 'Authorization: Bearer TOKEN'",
        ))
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let body = Full::new(Bytes::from_static(text.as_bytes()))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
