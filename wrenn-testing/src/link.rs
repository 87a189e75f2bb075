//! A connection to a server that a test can cut.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

/// Send and receive buffer of each socket: output in transit is then up to the ends.
const SOCKET_BUFFER: u32 = 64 << 10;
const BACKLOG: u32 = 64;

/// Passes connections on to a server until they are cut. Ends with the runtime.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    cuts: watch::Sender<u64>,
}

impl Link {
    /// Listens on loopback for connections to `server`. Must be called on a runtime.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = small_socket()?;
        listener.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = listener.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let (cuts, cut) = watch::channel(0);
        tokio::spawn(accept(listener, server, cut));
        Ok(Self { address, cuts })
    }

    /// The address that passes connections on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the server by way of the link.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends every connection. New ones are passed on.
    pub fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, cut: watch::Receiver<u64>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let mut cut = cut.clone();
        cut.mark_unchanged();
        tokio::spawn(async move {
            // A server that is gone looks to the client like a link that was cut.
            let Ok(socket) = small_socket() else { return };
            let Ok(mut far) = socket.connect(server).await else {
                return;
            };
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

fn small_socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    Ok(socket)
}
