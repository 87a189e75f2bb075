//! What a guest reaches, and what it doesn't.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;
use wrenn_core::network::{GATEWAY_ADDRESS, GUEST_ADDRESS};

use crate::world::{
    CLOSED, Greeter, Guest, HOST_PRIVATE, HOST_PUBLIC, Namespace, Outside, PATIENCE, PORT, PUBLIC,
    SILENCE, ip, on_fresh_host, open,
};

/// Waits for a datagram.
async fn received(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = timeout(PATIENCE, socket.recv_from(&mut buffer))
        .await
        .expect("no datagram")
        .unwrap();
    (
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
        from,
    )
}

#[test]
fn a_guest_reaches_the_public_internet_under_the_hosts_address() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        let greeter = Greeter::start(&outside.namespace);
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        let guest = Guest::start(&slot);

        let greeting = guest.namespace.greeting_of(PUBLIC, PATIENCE).await;
        assert_eq!(greeting.as_deref(), Ok(HOST_PRIVATE.to_string().as_str()));
        assert_eq!(greeter.visits(), 1);

        let echo = outside.namespace.udp((PUBLIC, 53));
        let socket = guest.namespace.udp((Ipv4Addr::UNSPECIFIED, 0));
        socket.send_to(b"question", (PUBLIC, 53)).await.unwrap();
        let (question, from) = received(&echo).await;
        assert_eq!(
            (question.as_str(), from.ip()),
            ("question", HOST_PRIVATE.into())
        );
        echo.send_to(b"answer", from).await.unwrap();
        assert_eq!(
            received(&socket).await,
            ("answer".to_owned(), (PUBLIC, 53).into())
        );
        slot.remove().await.unwrap();
    });
}

#[test]
fn the_host_reaches_a_guest_and_is_seen_as_its_gateway() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let (first, second) = (
            network.create_slot("first").await.unwrap(),
            network.create_slot("second").await.unwrap(),
        );
        let (guest, other) = (Guest::start(&first), Guest::start(&second));
        let (greeter, other_greeter) = (
            Greeter::start(&guest.namespace),
            Greeter::start(&other.namespace),
        );

        let host = Namespace::current();
        let greeting = host.greeting_of(first.reachable_address(), PATIENCE).await;
        assert_eq!(
            greeting.as_deref(),
            Ok(GATEWAY_ADDRESS.to_string().as_str())
        );
        assert_eq!((greeter.visits(), other_greeter.visits()), (1, 0));
        host.greeting_of(second.reachable_address(), PATIENCE)
            .await
            .unwrap();
        assert_eq!((greeter.visits(), other_greeter.visits()), (1, 1));

        first.remove().await.unwrap();
        second.remove().await.unwrap();
    });
}

#[test]
fn everything_that_is_not_public_is_refused() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        let host = Namespace::current();
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        let neighbour = network.create_slot("neighbour").await.unwrap();
        let (guest, other) = (Guest::start(&slot), Guest::start(&neighbour));
        let greeters = [&outside.namespace, &host, &other.namespace].map(Greeter::start);
        let slot_greeter = Greeter::start(&Namespace::of_slot(&slot));

        // Each of them answers, so what keeps the guest away is the policy alone.
        for address in CLOSED {
            host.greeting_of(address, PATIENCE).await.unwrap();
        }
        host.greeting_of(neighbour.reachable_address(), PATIENCE)
            .await
            .unwrap();
        outside
            .namespace
            .greeting_of(HOST_PUBLIC, PATIENCE)
            .await
            .unwrap();
        let visits = greeters.each_ref().map(Greeter::visits);

        // All refused aloud, so that a program fails instead of hanging.
        let plan = network.plan();
        let closed = CLOSED.into_iter().chain([
            HOST_PRIVATE,
            HOST_PUBLIC,
            GATEWAY_ADDRESS,
            slot.reachable_address(),
            neighbour.reachable_address(),
            plan.link_host(slot.number()),
            plan.link_slot(slot.number()),
            plan.link_slot(neighbour.number()),
            plan.link_host(neighbour.number()),
            Ipv4Addr::new(169, 254, 1, 1),
            Ipv4Addr::new(240, 0, 0, 9),
        ]);
        for address in closed {
            let refused = guest.namespace.greeting_of(address, PATIENCE).await;
            assert!(
                matches!(
                    refused,
                    Err(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
                ),
                "{address}: {refused:?}"
            );
        }
        assert_eq!(greeters.each_ref().map(Greeter::visits), visits);
        assert_eq!(slot_greeter.visits(), 0);

        slot.remove().await.unwrap();
        neighbour.remove().await.unwrap();
    });
}

#[test]
fn whoever_uses_the_host_as_a_router_does_not_reach_a_guest() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        let guest = Guest::start(&slot);
        let greeter = Greeter::start(&guest.namespace);
        let refused = outside
            .namespace
            .greeting_of(slot.reachable_address(), SILENCE)
            .await;
        assert_eq!(refused, Err(ErrorKind::TimedOut));
        let host = Namespace::current();
        host.greeting_of(slot.reachable_address(), PATIENCE)
            .await
            .unwrap();
        assert_eq!(greeter.visits(), 1, "only the host came through");
        slot.remove().await.unwrap();
    });
}

/// Datagrams on one path keep their order, so when the last one is there, those sent
/// before it will not come any more.
#[test]
fn a_guest_sends_from_its_own_address_only() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        let neighbour = network.create_slot("neighbour").await.unwrap();
        let guest = Guest::start(&slot);
        let sink = outside.namespace.udp((PUBLIC, 53));

        let plan = network.plan();
        let forged = [
            Ipv4Addr::new(8, 8, 4, 77),
            HOST_PRIVATE,
            slot.reachable_address(),
            neighbour.reachable_address(),
            plan.link_slot(slot.number()),
            plan.link_host(slot.number()),
            GATEWAY_ADDRESS,
        ];
        for source in forged {
            guest
                .namespace
                .within(|| ip(&format!("address add {source}/32 dev lo")));
            guest
                .send_from((source, 0).into(), (PUBLIC, 53).into(), "forged")
                .await;
        }
        guest
            .send_from((GUEST_ADDRESS, 0).into(), (PUBLIC, 53).into(), "genuine")
            .await;
        let (text, from) = received(&sink).await;
        assert_eq!((text.as_str(), from.ip()), ("genuine", HOST_PRIVATE.into()));
        slot.remove().await.unwrap();
        neighbour.remove().await.unwrap();
    });
}

/// As a VMM that was taken over might: it is in the slot's namespace, behind the rules
/// that its guest meets.
#[test]
fn the_host_does_not_rely_on_a_slots_own_rules() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        let host = Namespace::current();
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        let neighbour = network.create_slot("neighbour").await.unwrap();
        let (guest, other) = (Guest::start(&slot), Guest::start(&neighbour));
        let greeters = [&outside.namespace, &host, &other.namespace].map(Greeter::start);

        let inside = Namespace::of_slot(&slot);
        let plan = network.plan();
        let mut sources = vec![plan.link_slot(slot.number())];
        // The pinned address itself passes the first gate, and must fail at the others.
        sources.push(slot.reachable_address());
        inside.within(|| {
            ip(&format!(
                "address add {}/32 dev uplink",
                slot.reachable_address()
            ))
        });
        let targets = [
            HOST_PRIVATE,
            HOST_PUBLIC,
            neighbour.reachable_address(),
            CLOSED[0],
            CLOSED[4],
        ];
        for source in sources {
            for target in targets {
                let socket = inside.within(|| {
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.bind((source, 0).into()).unwrap();
                    socket
                });
                let connected = timeout(SILENCE, socket.connect((target, PORT).into())).await;
                assert!(!matches!(connected, Ok(Ok(_))), "{source} reached {target}");
            }
        }
        assert_eq!(greeters.each_ref().map(Greeter::visits), [0, 0, 0]);

        // Nor may it send to where guests may, from an address that isn't the slot's.
        let sink = outside.namespace.udp((PUBLIC, 53));
        let socket = inside.udp((plan.link_slot(slot.number()), 0));
        socket.send_to(b"forged", (PUBLIC, 53)).await.unwrap();
        guest
            .send_from((GUEST_ADDRESS, 0).into(), (PUBLIC, 53).into(), "genuine")
            .await;
        assert_eq!(received(&sink).await.0, "genuine");
        slot.remove().await.unwrap();
        neighbour.remove().await.unwrap();
    });
}

#[test]
fn there_is_no_ipv6() {
    const SIX: &str = "2001:4860:4860::8844";
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        // A host that routes IPv6, and a world that would answer.
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        ip("-6 address add 2001:db8:77::1/64 dev lan0 nodad");
        ip("-6 route add default via 2001:db8:77::2");
        outside.namespace.within(|| {
            ip("-6 address add 2001:db8:77::2/64 dev lan1 nodad");
            ip(&format!("-6 address add {SIX}/128 dev lan1 nodad"));
            ip("-6 route add default via 2001:db8:77::1");
        });
        let sink = outside.namespace.udp((SIX, 53));
        let sink_four = outside.namespace.udp((PUBLIC, 53));
        let host = Namespace::current();
        host.udp("[::]:0")
            .send_to(b"host", (SIX, 53))
            .await
            .unwrap();
        assert_eq!(received(&sink).await.0, "host", "the world answers on IPv6");

        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        let guest = Guest::start(&slot);
        let addresses = || std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        assert_eq!(Namespace::of_slot(&slot).within(addresses), "");
        assert!(
            !host.within(addresses).contains("wrenn-"),
            "the veth has no address of IPv6"
        );

        // The guest sends to its gateway's hardware address, without asking for it.
        let gateway = wrenn_core::network::GATEWAY_MAC;
        guest.namespace.within(|| {
            ip("-6 address add 2001:db8:99::21/64 dev eth0 nodad");
            ip("-6 address add fe80::21/64 dev eth0 nodad");
            ip(&format!(
                "-6 neighbour replace fe80::22 lladdr {gateway} dev eth0"
            ));
            ip("-6 route add default via fe80::22 dev eth0");
        });
        let six: SocketAddr = format!("[{SIX}]:53").parse().unwrap();
        guest
            .send_from("[2001:db8:99::21]:0".parse().unwrap(), six, "guest")
            .await;
        guest
            .send_from((GUEST_ADDRESS, 0).into(), (PUBLIC, 53).into(), "four")
            .await;
        assert_eq!(received(&sink_four).await.0, "four");
        let mut buffer = [0; 16];
        let nothing = sink.try_recv(&mut buffer).map_err(|error| error.kind());
        assert_eq!(nothing, Err(ErrorKind::WouldBlock), "IPv6 came through");
        slot.remove().await.unwrap();
    });
}
