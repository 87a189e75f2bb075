//! A connection to a server that can be cut.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::TcpSocket;
use tokio::sync::watch;

/// Passes connections on to an address until they are cut.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    cuts: watch::Sender<u64>,
}

impl Link {
    pub(crate) fn to(server: SocketAddr) -> Self {
        // It stores little itself: what is on its way is up to its ends.
        let listener = small_socket();
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, cut) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.clone();
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = small_socket().connect(server).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, cuts }
    }

    /// Ends every connection. New ones are passed on.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }
}

fn small_socket() -> TcpSocket {
    const BUFFER: u32 = 64 << 10;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(BUFFER).unwrap();
    socket.set_recv_buffer_size(BUFFER).unwrap();
    socket
}
