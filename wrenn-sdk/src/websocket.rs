//! WebSockets whose unread data stays with the server.
//!
//! A reader that stops must stop the command, not fill buffers on the way. So the socket's
//! receive buffer is small: with it and the frame that is being read, less than 256 KiB are
//! underway.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use http::header::{HeaderName, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderValue, Request, StatusCode};
use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
pub(crate) use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use wrenn_api::error::ErrorCode;

use crate::error::{Error, Result};
use crate::retry::{Failure, Retries};
use crate::transport::{Transport, error_of};

/// The kernel doubles it for its own needs.
const RECEIVE_BUFFER: u32 = 64 << 10;
const READ_BUFFER: usize = 32 << 10;
/// Far above what the server sends in a frame.
const MAX_MESSAGE: usize = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

pub(crate) type Socket = WebSocketStream<Pin<Box<dyn Io>>>;
pub(crate) type Sender = SplitSink<Socket, Message>;
pub(crate) type Receiver = SplitStream<Socket>;

/// Opens a WebSocket, again where the server asks for it. No command is started by that.
pub(crate) async fn open(
    transport: &Transport,
    url: &Url,
    protocol: Option<&'static str>,
) -> Result<Socket> {
    let mut retries = Retries::new(true);
    loop {
        let (error, failure) = match open_once(transport, url, protocol).await {
            Ok(socket) => return Ok(socket),
            Err(failed) => failed,
        };
        let Some(wait) = failure.and_then(|failure| retries.next(failure)) else {
            return Err(error);
        };
        tracing::debug!(%error, ?wait, path = url.path(), "opening a WebSocket again");
        tokio::time::sleep(wait).await;
    }
}

/// Opens a WebSocket once.
pub(crate) async fn open_once(
    transport: &Transport,
    url: &Url,
    protocol: Option<&'static str>,
) -> Result<Socket, (Error, Option<Failure>)> {
    let name = format!("GET {}", url.path());
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect(transport, url)).await;
    let stream = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => stream,
        Err(error) => {
            let seen_before = transport.seen.load(Ordering::Relaxed);
            let error = Error::Connect {
                url: transport.address(),
                source: error.into(),
            };
            return Err((error, Some(Failure::NotConnected { seen_before })));
        }
    };
    let request = request(transport, url, protocol).map_err(|error| (error, None))?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let upgraded = tokio::time::timeout(
        HANDSHAKE_TIMEOUT,
        client_async_with_config(request, stream, Some(config)),
    );
    match upgraded.await {
        Ok(Ok((socket, _))) => {
            transport.seen.store(true, Ordering::Relaxed);
            Ok(socket)
        }
        Ok(Err(WebSocketError::Http(response))) => {
            transport.seen.store(true, Ordering::Relaxed);
            let body = response.body().clone().unwrap_or_default();
            let error = error_of(response.status(), response.headers(), &body);
            let code = error.code().unwrap_or(ErrorCode::Unknown);
            let failure = Failure::answer(response.status(), code, response.headers());
            Err((error, Some(failure)))
        }
        Ok(Err(error)) => Err((
            Error::Disconnected {
                request: name,
                request_id: None,
                source: error.into(),
            },
            Some(Failure::Disconnected),
        )),
        Err(_) => {
            let timed_out = Failure::Answer {
                status: StatusCode::GATEWAY_TIMEOUT,
                code: ErrorCode::TimedOut,
                should_retry: None,
                retry_after: None,
            };
            Err((Error::TimedOut { request: name }, Some(timed_out)))
        }
    }
}

fn request(
    transport: &Transport,
    url: &Url,
    protocol: Option<&'static str>,
) -> Result<Request<()>> {
    let mut url = url.clone();
    let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
    // Both pairs of schemes are alike in all else, so it is always possible.
    let _set = url.set_scheme(scheme);
    let mut request = url
        .as_str()
        .into_client_request()
        .map_err(|error| Error::Protocol {
            request: format!("GET {}", url.path()),
            problem: error.to_string(),
            request_id: None,
        })?;
    let headers = request.headers_mut();
    if let Some(key) = &transport.key {
        headers.insert(HeaderName::from_static("x-api-key"), key.clone());
    }
    if let Some(protocol) = protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(request)
}

async fn connect(transport: &Transport, url: &Url) -> io::Result<Pin<Box<dyn Io>>> {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or_default();
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in lookup_host((bare, port)).await? {
        match connect_to(address).await {
            Ok(stream) if url.scheme() == "https" => {
                let name = ServerName::try_from(bare.to_owned())
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                let connector = TlsConnector::from(Arc::clone(&transport.tls));
                return Ok(Box::pin(connector.connect(name, stream).await?));
            }
            Ok(stream) => return Ok(Box::pin(stream)),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Before connecting: the window's scale is agreed on then.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_keepalive(true)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
