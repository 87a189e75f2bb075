//! What a guest can reach, tried from inside.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};

use http_status::status_without_token;
use wrenn_core::guest::{Command, ENVD_PORT};
use wrenn_core::sandbox::Sandbox;

use crate::stage::{self, minimal};

/// Somebody's of each network that is closed to all: private, link-local with the metadata
/// services of clouds, carrier-grade NAT, benchmarking, multicast, reserved; and of IPv6
/// also what would be public, since it is closed as a whole.
const CLOSED: &[&str] = &[
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "10.0.0.1",
    "10.11.255.254",
    "10.12.0.0",
    "10.255.255.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.168.0.1",
    "192.168.255.254",
    "100.64.0.1",
    "100.127.255.254",
    "198.18.0.1",
    "0.0.0.1",
    "224.0.0.2",
    "240.0.0.1",
    "255.255.255.255",
    "fe80::1",
    "fe80::a9fe:a9fe",
    "fd00::1",
    "fd00:ec2::254",
    "fc00::1",
    "ff02::2",
    "ff05::2",
    "2001:4860:4860::8888",
    "64:ff9b::a00:1",
    "::ffff:10.0.0.1",
];

/// Runs a line of shell as the guest's root, who may send what it likes, and returns what it
/// prints.
async fn shell(sandbox: &Sandbox, line: &str) -> String {
    let output = sandbox
        .exec(&Command::shell(line).user("root"))
        .await
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Addresses that are tried at the same time, so that one does not wait for the others'
/// silence.
const AT_ONCE: usize = 8;

/// Tries every address from inside, by TCP and UDP to the port and by ICMP, and returns what
/// answered. One that is refused is refused at once; one that is dropped takes a moment.
async fn answering(sandbox: &Sandbox, targets: &[(IpAddr, u16)]) -> String {
    let attempt = |(address, port): &(IpAddr, u16)| {
        let datagrams = match address {
            IpAddr::V4(address) => format!("{address}:{port}"),
            IpAddr::V6(address) => format!("[{address}]:{port}"),
        };
        format!(
            "(nc -w 2 {address} {port} </dev/null >/dev/null 2>&1 && echo tcp {address}:{port}
             timeout 2 nslookup wrenn.test {datagrams} >/dev/null 2>&1 && echo udp {address}:{port}
             ping -c 1 -W 1 {address} >/dev/null 2>&1 && echo icmp {address}) &\n"
        )
    };
    let batches = targets.chunks(AT_ONCE).map(|batch| {
        let attempts: String = batch.iter().map(attempt).collect();
        format!("{attempts}wait\n")
    });
    shell(sandbox, &batches.collect::<String>()).await
}

async fn datagrams_sent(sandbox: &Sandbox) -> usize {
    let sent = "cat /proc/net/snmp /proc/net/snmp6 | \
                awk '/^Udp: [0-9]/ { n += $5 } /^Udp6OutDatagrams/ { n += $2 } END { print n }'";
    shell(sandbox, sent).await.trim().parse().unwrap()
}

/// Listeners on every address of the host, which must hear nothing.
struct Ears {
    tcp: tokio::net::TcpListener,
    udp: tokio::net::UdpSocket,
}

impl Ears {
    async fn open() -> Self {
        // On IPv6 and, by the same socket, on IPv4.
        let tcp = tokio::net::TcpListener::bind("[::]:0").await.unwrap();
        let udp = tokio::net::UdpSocket::bind(tcp.local_addr().unwrap())
            .await
            .unwrap();
        Self { tcp, udp }
    }

    fn port(&self) -> u16 {
        self.tcp.local_addr().unwrap().port()
    }

    fn assert_silence(&self) {
        use futures::FutureExt as _;
        let accepted = self.tcp.accept().now_or_never();
        assert!(accepted.is_none(), "the host was reached: {accepted:?}");
        let received = self.udp.try_recv_from(&mut [0; 64]);
        let nothing = received.map_err(|error| error.kind());
        assert_eq!(nothing, Err(ErrorKind::WouldBlock), "the host was reached");
    }
}

#[test]
fn host_neighbours_private_and_metadata_addresses_are_closed() {
    stage::enter(|host| async move {
        let (first, second) = tokio::join!(minimal(&host), minimal(&host));
        let ears = Ears::open().await;
        let port = ears.port();
        for (guest, other) in [(&first, &second), (&second, &first)] {
            // The control: what is its own answers, so the tools and the check work.
            let own = [("127.0.0.1".parse().unwrap(), ENVD_PORT)];
            let answers = answering(guest, &own).await;
            assert_eq!(
                answers,
                format!("tcp 127.0.0.1:{ENVD_PORT}\nicmp 127.0.0.1\n")
            );

            let neighbour = other.address(ENVD_PORT).ip();
            let mut closed = vec![
                (neighbour, ENVD_PORT),
                // Its own address, as the host has it, and its gateway.
                (guest.address(ENVD_PORT).ip(), ENVD_PORT),
                ("169.254.0.22".parse().unwrap(), port),
                ("169.254.0.22".parse().unwrap(), ENVD_PORT),
            ];
            closed.extend(host_addresses().into_iter().map(|address| (address, port)));
            closed.extend(CLOSED.iter().map(|address| (address.parse().unwrap(), 80)));
            let before = datagrams_sent(guest).await;
            assert_eq!(answering(guest, &closed).await, "", "can be reached");
            assert!(
                datagrams_sent(guest).await > before,
                "no datagram was tried"
            );
            ears.assert_silence();
        }
        first.destroy().await.unwrap();
        second.destroy().await.unwrap();
    });
}

/// Under another's address nothing more is open. That such packets do not even get to where
/// all may send is tested where there is such a place, with the network alone.
#[test]
fn a_forged_source_opens_nothing() {
    stage::enter(|host| async move {
        let (guest, other) = tokio::join!(minimal(&host), minimal(&host));
        let ears = Ears::open().await;
        let neighbour = other.address(ENVD_PORT).ip();
        let targets = host_addresses()
            .into_iter()
            .map(|address| (address, ears.port()))
            .chain([(neighbour, ENVD_PORT)])
            .filter(|(address, _)| address.is_ipv4())
            .collect::<Vec<_>>();
        let gateway = "169.254.0.22";
        // Not its gateway's: by that address the host talks to it.
        let mut forged = vec![neighbour];
        forged.extend(host_addresses().into_iter().filter(IpAddr::is_ipv4).take(2));
        forged.push("8.8.4.4".parse().unwrap());
        for source in forged {
            let route = format!("ip route replace default via {gateway} dev eth0");
            let begin = format!("ip address add {source}/32 dev lo && {route} src {source}");
            let complaint = shell(&guest, &format!("({begin}) 2>&1")).await;
            assert_eq!(complaint, "", "{source} cannot be forged");
            // Whoever has an address for its own finds itself there.
            let mut others = targets.clone();
            others.retain(|(address, _)| *address != source);
            let answers = answering(&guest, &others).await;
            let end = format!("{route}; ip address del {source}/32 dev lo");
            shell(&guest, &end).await;
            assert_eq!(answers, "", "can be reached from {source}");
            ears.assert_silence();
        }
        guest.destroy().await.unwrap();
        other.destroy().await.unwrap();
    });
}

/// Every address of this host but loopback. Of the links between it and slots, which have
/// two addresses each, the other end as well.
fn host_addresses() -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().unwrap() {
        let Some(address) = interface.address else {
            continue;
        };
        if let Some(address) = address.as_sockaddr_in6() {
            addresses.push(IpAddr::from(address.ip()));
        }
        if let Some(address) = address.as_sockaddr_in() {
            addresses.push(address.ip().into());
            if interface.interface_name.starts_with("wrenn-") {
                let other = Ipv4Addr::from_bits(address.ip().to_bits() ^ 1);
                addresses.push(other.into());
            }
        }
    }
    addresses.retain(|address| !address.is_loopback());
    addresses
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
            ("POST", "/sync"),
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
