//! Listens, and serves each connection until it closes.
//!
//! HTTP/1.1 and HTTP/2 (prior knowledge) on one port. There is no limit on the size
//! of a body and no time limit on a stream: uploads are as large as the disk, and a
//! process runs as long as it runs.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};

use crate::guest::Guest;
use crate::router::{Body, Router};

/// Bytes that may wait in the kernel for a client. A client that lost its connection asks
/// for it again, so it must be much less than what is kept of a process's output.
pub const SEND_BUFFER: usize = 128 * 1024;

/// A daemon that has its port.
#[derive(Debug)]
pub struct Daemon {
    listener: TcpListener,
    guest: Arc<Guest>,
}

impl Daemon {
    /// Takes the address.
    ///
    /// # Errors
    /// When it is taken already or not ours.
    pub async fn bind(address: SocketAddr, guest: Arc<Guest>) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            guest,
        })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `guest.shutdown` is cancelled, then kills the processes and waits
    /// for everything to end.
    pub async fn serve(self) {
        let router = Arc::new(Router::new(Arc::clone(&self.guest)));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.guest.shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, _peer)) => {
                    let (router, guest) = (Arc::clone(&router), Arc::clone(&self.guest));
                    self.guest.tasks.spawn(async move {
                        serve_connection(stream, router, &guest).await;
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: those in use must close first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(self.listener);
        self.guest.watchers.clear();
        self.guest.tasks.close();
        self.guest.tasks.wait().await;
    }
}

async fn serve_connection(stream: TcpStream, router: Arc<Router>, guest: &Guest) {
    stream.set_nodelay(true).ok();
    sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER).ok();
    notice_dead_peers(&stream).ok();
    let accepted = guest.connections.accept();
    let id = accepted.id();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(id);
        let router = Arc::clone(&router);
        async move { Ok::<Response<Body>, Infallible>(router.route(request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(true);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = connection => {
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended early");
            }
        }
        () = accepted.closed() => tracing::debug!("a connection of before the resume is closed"),
        () = guest.shutdown.cancelled() => {}
    }
}

/// A client that vanished without a word (its host went away, or the guest was moved)
/// would hold its streams open for ever. Time is not limited while data waits to be
/// taken: a reader may be slow.
fn notice_dead_peers(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    Ok(sockopt::set_tcp_keepcnt(stream, 4)?)
}
