//! Limits of a slot's connections, and their release with the slot.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::Path;

use tokio::net::UdpSocket;
use wrenn_core::network::{ConnectionLimits, Network, NetworkConfig};

use crate::world::{
    Greeter, Guest, Namespace, Outside, PATIENCE, PUBLIC, SILENCE, keep_none, on_fresh_host, open,
};

const DNS: u16 = 53;

async fn open_limited(root: &Path, limits: ConnectionLimits) -> Network {
    let config = NetworkConfig::default().with_connection_limits(limits);
    Network::open(config, root, keep_none).await.unwrap()
}

fn unlimited() -> ConnectionLimits {
    ConnectionLimits {
        open: None,
        new_per_second: None,
    }
}

/// How many connections the host knows.
fn connections() -> usize {
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.unwrap().trim().parse().unwrap()
}

/// Begins so many connections from a guest, and leaves them open.
async fn begin(guest: &Guest, count: usize) -> Vec<UdpSocket> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = guest.namespace.udp((Ipv4Addr::UNSPECIFIED, 0));
        socket.connect((PUBLIC, DNS)).await.unwrap();
        // One that was refused is told with the next one.
        drop(socket.send(b"question").await);
        sockets.push(socket);
    }
    sockets
}

/// How many datagrams have come. Those that are on their way come in order, so none is behind
/// the one that is waited for.
async fn received(sink: &UdpSocket) -> usize {
    let mut buffer = [0; 64];
    let mut count = 0;
    while let Ok(Ok(_)) = tokio::time::timeout(SILENCE, sink.recv_from(&mut buffer)).await {
        count += 1;
    }
    count
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    on_fresh_host(|| async {
        const LIMIT: u32 = 8;
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        let greeter = Greeter::start(&outside.namespace);
        let sink = outside.namespace.udp((PUBLIC, DNS));
        let limits = ConnectionLimits {
            open: NonZeroU32::new(LIMIT),
            ..unlimited()
        };
        let network = open_limited(root.path(), limits).await;
        let slot = network.create_slot("greedy").await.unwrap();
        let other = network.create_slot("modest").await.unwrap();
        let (guest, neighbour) = (Guest::start(&slot), Guest::start(&other));

        let sockets = begin(&guest, 40).await;
        assert_eq!(received(&sink).await, LIMIT as usize);
        assert!(connections() <= LIMIT as usize, "{}", connections());
        let refused = guest.namespace.greeting_of(PUBLIC, PATIENCE).await;
        assert_eq!(refused, Err(ErrorKind::HostUnreachable));

        // Open connections continue, the host gets in, and a neighbour has a limit of its own.
        sockets[0].send(b"more").await.unwrap();
        assert_eq!(received(&sink).await, 1);
        let inside = Greeter::start(&guest.namespace);
        let host = Namespace::current();
        host.greeting_of(slot.reachable_address(), PATIENCE)
            .await
            .unwrap();
        assert_eq!(inside.visits(), 1);
        neighbour
            .namespace
            .greeting_of(PUBLIC, PATIENCE)
            .await
            .unwrap();
        assert_eq!(greeter.visits(), 1);
        slot.remove().await.unwrap();
        other.remove().await.unwrap();
    });
}

#[test]
fn connections_begun_too_fast_are_dropped() {
    on_fresh_host(|| async {
        const BEGUN: usize = 400;
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        let sink = outside.namespace.udp((PUBLIC, DNS));
        let limits = ConnectionLimits {
            new_per_second: NonZeroU32::new(2),
            ..unlimited()
        };
        let network = open_limited(root.path(), limits).await;
        let slot = network.create_slot("hasty").await.unwrap();
        let guest = Guest::start(&slot);
        let sockets = begin(&guest, BEGUN).await;
        let arrived = received(&sink).await;
        assert!((1..BEGUN / 2).contains(&arrived), "{arrived} of {BEGUN}");
        // The first one was let through, and is not asked again.
        for _ in 0..20 {
            sockets[0].send(b"more").await.unwrap();
        }
        assert_eq!(received(&sink).await, 20);
        slot.remove().await.unwrap();
    });
}

#[test]
fn connections_end_with_their_slot() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        let sink = outside.namespace.udp((PUBLIC, DNS));
        let network = open(root.path()).await;
        let slot = network.create_slot("first").await.unwrap();
        let other = network.create_slot("second").await.unwrap();
        let (guest, neighbour) = (Guest::start(&slot), Guest::start(&other));
        let inside = Greeter::start(&guest.namespace);
        let host = Namespace::current();
        host.greeting_of(slot.reachable_address(), PATIENCE)
            .await
            .unwrap();
        assert_eq!(inside.visits(), 1);
        let _sockets = begin(&guest, 100).await;
        let kept = begin(&neighbour, 3).await;
        assert_eq!(received(&sink).await, 103);
        assert!(connections() > 100, "{}", connections());

        drop((inside, guest));
        slot.remove().await.unwrap();
        assert_eq!(connections(), 3, "those of the neighbour");
        kept[0].send(b"more").await.unwrap();
        assert_eq!(received(&sink).await, 1);
        other.remove().await.unwrap();
        assert_eq!(connections(), 0);
    });
}
