//! What a guest can reach, tried from inside.

use http_status::status_without_token;
use wrenn_core::guest::{Command, ENVD_PORT};
use wrenn_core::sandbox::Sandbox;

use crate::stage::{self, minimal};

/// Tries a TCP connection from inside. True if it came about.
async fn connects(sandbox: &Sandbox, address: &str, port: u16) -> bool {
    let line = format!("nc -w 3 {address} {port} </dev/null >/dev/null 2>&1");
    sandbox
        .exec(&Command::shell(line))
        .await
        .unwrap()
        .status
        .shell_code()
        == 0
}

#[test]
fn host_neighbours_private_and_metadata_addresses_are_closed() {
    stage::enter(|host| async move {
        let (first, second) = tokio::join!(minimal(&host), minimal(&host));
        // The control: the guest's own daemon answers, so `nc` and the check work.
        assert!(connects(&first, "127.0.0.1", ENVD_PORT).await);

        // A listener on every address of the host.
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let neighbour = second.address(ENVD_PORT).ip().to_string();
        let mut closed = vec![(neighbour, ENVD_PORT), ("169.254.0.22".to_owned(), port)];
        closed.extend(host_addresses().into_iter().map(|address| (address, port)));
        for private in [
            "169.254.169.254",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "198.18.0.1",
        ] {
            closed.push((private.to_owned(), 80));
        }
        for (address, port) in closed {
            assert!(
                !connects(&first, &address, port).await,
                "{address}:{port} can be reached"
            );
        }
        let accepted =
            tokio::time::timeout(std::time::Duration::from_millis(1), listener.accept()).await;
        assert!(accepted.is_err(), "the host was reached");
        first.destroy().await.unwrap();
        second.destroy().await.unwrap();
    });
}

/// Every IPv4 address of this host but loopback, the ends of slots' links among them.
fn host_addresses() -> Vec<String> {
    nix::ifaddrs::getifaddrs()
        .unwrap()
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
        .filter(|address| !address.is_loopback())
        .map(|address| address.to_string())
        .collect()
}

#[test]
fn the_daemon_answers_nobody_without_the_token_but_health() {
    stage::enter(|host| async move {
        let sandbox = minimal(&host).await;
        let address = sandbox.guest().address();
        assert_eq!(status_without_token(address, "GET", "/health").await, 204);
        let closed = [
            ("GET", "/metrics"),
            ("GET", "/envs"),
            ("POST", "/init"),
            ("POST", "/freeze"),
            ("POST", "/thaw"),
            ("GET", "/files?path=/etc/shadow"),
            ("POST", "/files?path=/tmp/x"),
            ("POST", "/files/compose"),
            ("POST", "/process.Process/List"),
            ("POST", "/process.Process/Start"),
            ("POST", "/process.Process/Connect"),
            ("POST", "/process.Process/Update"),
            ("POST", "/process.Process/SendInput"),
            ("POST", "/process.Process/StreamInput"),
            ("POST", "/process.Process/SendSignal"),
            ("POST", "/process.Process/CloseStdin"),
            ("POST", "/filesystem.Filesystem/Stat"),
            ("POST", "/filesystem.Filesystem/MakeDir"),
            ("POST", "/filesystem.Filesystem/Move"),
            ("POST", "/filesystem.Filesystem/ListDir"),
            ("POST", "/filesystem.Filesystem/Remove"),
            ("POST", "/filesystem.Filesystem/WatchDir"),
            ("POST", "/filesystem.Filesystem/CreateWatcher"),
            ("POST", "/filesystem.Filesystem/GetWatcherEvents"),
            ("POST", "/filesystem.Filesystem/RemoveWatcher"),
        ];
        for (method, path) in closed {
            assert_eq!(
                status_without_token(address, method, path).await,
                401,
                "{method} {path}"
            );
        }
        sandbox.destroy().await.unwrap();
    });
}

mod http_status {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    /// The status of a bare request with an empty JSON body.
    pub(super) async fn status_without_token(address: SocketAddr, method: &str, path: &str) -> u16 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        answer
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or_else(|| panic!("{answer}"))
    }
}
