//! A connection to a server that can be cut.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::TcpSocket;
use tokio::sync::watch;
use wrenn_sdk::Client;
use wrenn_testing::TestServer;

/// Passes connections on to a server until they are cut.
pub(crate) struct Link {
    address: SocketAddr,
    cuts: watch::Sender<u64>,
}

impl Link {
    pub(crate) async fn to(server: &TestServer) -> Self {
        // A link of its own stores little; what is underway is up to its ends.
        let listener = small_socket();
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, cut) = watch::channel(0);
        let server = server.address();
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

    pub(crate) fn client(&self, server: &TestServer) -> Client {
        Client::builder()
            .url(format!("http://{}", self.address))
            .key(server.api_key())
            .build()
            .unwrap()
    }
}

fn small_socket() -> TcpSocket {
    const BUFFER: u32 = 64 << 10;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(BUFFER).unwrap();
    socket.set_recv_buffer_size(BUFFER).unwrap();
    socket
}
