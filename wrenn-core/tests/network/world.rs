//! A small world inside namespaces of the test's own:
//!
//! ```text
//!   guest ── tap ── slot ── veth ── "host" ── veth ── "outside"
//!                                    192.168.77.1       192.168.77.2, 8.8.4.4,
//!                                    8.8.8.1            169.254.169.254, 10.0.0.9 …
//! ```
//!
//! The "host" is a fresh network namespace with a mount namespace of its own, so neither
//! the machine's network nor its `/run/netns` is touched. "Outside" has no link to
//! anything but the "host": an address there is one that the test assigned, and no packet
//! leaves these namespaces.

use std::fs::File;
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::task::JoinHandle;
use wrenn_core::network::{
    GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_MAC, Network, NetworkConfig, NetworkSlot, TAP_NAME,
};

use crate::sys::{open_tap, watched};

/// Where everything that answers listens.
pub(crate) const PORT: u16 = 49983;
/// An address that counts as public for the policy. Nothing but "outside" has it here.
pub(crate) const PUBLIC: Ipv4Addr = Ipv4Addr::new(8, 8, 4, 4);
/// Another one, which "outside" gets where a test wants it.
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(8, 8, 4, 5);
/// The host's own addresses, private and public.
pub(crate) const HOST_PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
pub(crate) const HOST_PUBLIC: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 1);
/// What "outside" has too, and what no guest may reach.
pub(crate) const CLOSED: [Ipv4Addr; 10] = [
    Ipv4Addr::new(192, 168, 77, 2),
    Ipv4Addr::new(10, 0, 0, 9),
    Ipv4Addr::new(10, 11, 255, 254),
    Ipv4Addr::new(100, 64, 0, 9),
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(172, 16, 0, 9),
    Ipv4Addr::new(172, 31, 255, 9),
    Ipv4Addr::new(192, 0, 2, 9),
    Ipv4Addr::new(198, 18, 0, 9),
    Ipv4Addr::new(203, 0, 113, 9),
];

/// Long enough for an answer on a busy machine, short enough to wait for none.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const SILENCE: Duration = Duration::from_millis(700);

/// Runs a test inside a fresh "host".
pub(crate) fn on_fresh_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    // Not on the test's own thread: with one test thread that is the main thread.
    let result = std::thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("these tests need root, to make namespaces of their own");
            copy_mount_table();
            let none = None::<&str>;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(test());
        };
        std::thread::Builder::new()
            .name("host".into())
            .spawn_scoped(scope, run)
            .unwrap()
            .join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Opens the network of the "host" with the default addresses, and sweeps all dead owners.
pub(crate) async fn open(root: &Path) -> Network {
    Network::open(NetworkConfig::default(), root, keep_none)
        .await
        .unwrap()
}

/// Keeps no dead owner's slots.
pub(crate) fn keep_none(_owner: &str) -> bool {
    false
}

/// A small plan, so that numbers of different root directories are sure to meet.
pub(crate) fn narrow() -> NetworkConfig {
    NetworkConfig::new(
        "10.11.0.0/29".parse().unwrap(),
        "10.12.0.0/28".parse().unwrap(),
    )
    .unwrap()
}

/// Gives the calling thread a mount table of its own, as a VMM has one.
pub(crate) fn copy_mount_table() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    mount(none, "/", none, private, none).unwrap();
}

/// Runs `ip` with these words in the calling thread's namespaces.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {errors}");
}

/// A network namespace without a name.
pub(crate) struct Namespace {
    descriptor: OwnedFd,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self::current()
        };
        std::thread::scope(|scope| scope.spawn(open).join().unwrap())
    }

    pub(crate) fn current() -> Self {
        Self {
            descriptor: File::open("/proc/thread-self/ns/net").unwrap().into(),
        }
    }

    pub(crate) fn of_slot(slot: &NetworkSlot) -> Self {
        Self::named(&slot.namespace_path())
    }

    pub(crate) fn named(path: &Path) -> Self {
        Self {
            descriptor: File::open(path).unwrap().into(),
        }
    }

    /// Does something in this namespace. A socket made there stays there.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let run = || {
            setns(self.descriptor.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(run).join().unwrap())
    }

    pub(crate) fn udp(&self, address: impl std::net::ToSocketAddrs + Send) -> UdpSocket {
        let socket = self.within(|| {
            let socket = std::net::UdpSocket::bind(address).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        UdpSocket::from_std(socket).unwrap()
    }

    /// Connects from here and returns what the other end says, or why it didn't.
    pub(crate) async fn greeting_of(
        &self,
        to: Ipv4Addr,
        patience: Duration,
    ) -> Result<String, ErrorKind> {
        let socket = self.within(|| TcpSocket::new_v4().unwrap());
        let talk = async {
            let mut stream = socket.connect(SocketAddrV4::new(to, PORT).into()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok(text)
        };
        match tokio::time::timeout(patience, talk).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(std::io::Error::kind(&error)),
            Err(_) => Err(ErrorKind::TimedOut),
        }
    }
}

/// Tells everybody who connects from which address they came, and counts them.
pub(crate) struct Greeter {
    visits: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Greeter {
    pub(crate) fn start(namespace: &Namespace) -> Self {
        let listener = namespace.within(|| {
            let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
            let listener = std::net::TcpListener::bind(address).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        let listener = TcpListener::from_std(listener).unwrap();
        let visits = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&visits);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, peer)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                // A visitor that is gone already was counted.
                drop(stream.write_all(peer.ip().to_string().as_bytes()).await);
            }
        });
        Self { visits, task }
    }

    pub(crate) fn visits(&self) -> usize {
        self.visits.load(Ordering::SeqCst)
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The world beyond the host.
pub(crate) struct Outside {
    pub(crate) namespace: Namespace,
}

impl Outside {
    /// Ties "outside" to the host in which the calling thread is.
    pub(crate) fn attach() -> Self {
        let namespace = Namespace::new();
        let host = Namespace::current();
        ip("link set lo up");
        ip("link add lan0 type veth peer name lan1");
        // `ip` takes a process for a namespace, so the pair is moved by a child in it.
        let mut child = namespace.within(|| {
            Command::new("cat")
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        });
        host.within(|| ip(&format!("link set lan1 netns {}", child.id())));
        drop(child.stdin.take());
        child.wait().unwrap();
        ip(&format!("address add {HOST_PRIVATE}/24 dev lan0"));
        ip(&format!("address add {HOST_PUBLIC}/32 dev lo"));
        ip("link set lan0 up");
        namespace.within(|| {
            ip("link set lo up");
            ip("address add 192.168.77.2/24 dev lan1");
            ip("link set lan1 up");
            ip(&format!("address add {PUBLIC}/32 dev lan1"));
            for address in &CLOSED[1..] {
                ip(&format!("address add {address}/32 dev lan1"));
            }
            // The way back to everything, so that only rules can keep packets away.
            ip(&format!("route add default via {HOST_PRIVATE}"));
            ip(&format!("route add 10.11.0.0/16 via {HOST_PRIVATE}"));
        });
        ip("route add default via 192.168.77.2");
        Self { namespace }
    }
}

/// A guest: a kernel of its own as far as the network goes, wired to a slot's TAP by a
/// task that carries frames, as a VMM would.
pub(crate) struct Guest {
    pub(crate) namespace: Namespace,
    carriers: [JoinHandle<()>; 2],
}

impl Guest {
    pub(crate) fn start(slot: &NetworkSlot) -> Self {
        assert_eq!(slot.tap_name(), TAP_NAME);
        Self::start_in(&Namespace::of_slot(slot))
    }

    /// Starts a guest in a slot that another process made.
    pub(crate) fn start_in(slot: &Namespace) -> Self {
        let namespace = Namespace::new();
        let slot_side = slot.within(|| open_tap(TAP_NAME));
        let guest_side = namespace.within(|| {
            let tap = open_tap("eth0");
            ip("link set lo up");
            ip(&format!("link set eth0 address {GUEST_MAC} up"));
            ip(&format!("address add {GUEST_ADDRESS}/30 dev eth0"));
            ip(&format!("route add default via {GATEWAY_ADDRESS}"));
            tap
        });
        let slot_side = Arc::new(watched(slot_side));
        let guest_side = Arc::new(watched(guest_side));
        let carriers = [
            tokio::spawn(carry(Arc::clone(&slot_side), Arc::clone(&guest_side))),
            tokio::spawn(carry(guest_side, slot_side)),
        ];
        Self {
            namespace,
            carriers,
        }
    }

    /// Sends a datagram from an address that may not be the guest's.
    pub(crate) async fn send_from(&self, source: SocketAddr, to: SocketAddr, text: &str) {
        let socket = self.namespace.udp(source);
        // A refusal that comes back at once is as good as silence.
        drop(socket.send_to(text.as_bytes(), to).await);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.carriers.iter().for_each(JoinHandle::abort);
    }
}

/// Carries frames, each with its virtio-net header, from one TAP to another.
async fn carry(from: Arc<AsyncFd<File>>, to: Arc<AsyncFd<File>>) {
    let mut frame = vec![0; 65_536];
    loop {
        let Ok(mut ready) = from.readable().await else {
            return;
        };
        match ready.try_io(|from| from.get_ref().read(&mut frame)) {
            // A frame that the other side can't take is lost, as on a wire.
            Ok(Ok(length)) => drop(to.get_ref().write(&frame[..length])),
            Ok(Err(_)) => return,
            Err(_would_block) => {}
        }
    }
}
