//! Accepts connections and serves each: HTTP/1.1 with upgrades, and HTTP/2, on one port.
//!
//! A client has a deadline for the headers of a request, and a peer that vanished is found by
//! keep-alive probes. When the server stops, connections take no new request; those under way
//! get their grace.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};

use super::preface::PrefaceTimeout;
use crate::service::App;

/// Connections at a time. Beyond them, new ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16_384;
/// Output on its way to a client, per connection. See `wrenn_api::stream` for why it is small.
const SEND_BUFFER: usize = 256 << 10;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

pub(crate) async fn serve(app: Arc<App>, listener: TcpListener, routes: axum::Router) {
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = app.shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, slot)) => {
                let (app, routes) = (Arc::clone(&app), routes.clone());
                let tasks = app.tasks.clone();
                tasks.spawn(async move {
                    serve_connection(&app, stream, routes).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: those in use must close first.
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<tokio::sync::Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

async fn serve_connection(app: &App, stream: TcpStream, routes: axum::Router) {
    // Without either it works, only slower.
    stream.set_nodelay(true).ok();
    prepare(&stream).ok();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(app.settings.headers_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(30));
    let stream = PrefaceTimeout::new(stream, app.settings.headers_timeout);
    let service = TowerToHyperService::new(routes);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = app.shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(app.settings.shutdown_grace, connection).await {
                Ok(served) => served,
                Err(_) => {
                    tracing::info!("cutting off a request, since the server stops");
                    return;
                }
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(error, "a connection ended early");
    }
}

/// Bounds what is on its way to the peer, and finds peers that vanished.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    Ok(sockopt::set_tcp_keepcnt(stream, 4)?)
}
