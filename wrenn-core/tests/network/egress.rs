//! What one sandbox may reach, as its policy changes.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;
use wrenn_core::network::{
    EgressDefault, EgressPolicy, MAX_EGRESS_ENTRIES, Network, NetworkSlot, SlotPool,
};

use crate::world::{
    CLOSED, Greeter, Guest, HOST_PRIVATE, Namespace, OTHER, Outside, PATIENCE, PUBLIC, SILENCE, ip,
    on_fresh_host, open,
};

fn policy(default: EgressDefault, allow: &[&str], deny: &[&str]) -> EgressPolicy {
    let list = |networks: &[&str]| networks.iter().map(|net| net.parse().unwrap()).collect();
    EgressPolicy::new(default, list(allow), list(deny)).unwrap()
}

/// A world with two public addresses, and a guest in it.
struct World {
    _root: tempfile::TempDir,
    network: Network,
    outside: Outside,
    slot: NetworkSlot,
    guest: Guest,
}

impl World {
    async fn make() -> Self {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        outside
            .namespace
            .within(|| ip(&format!("address add {OTHER}/32 dev lan1")));
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        let guest = Guest::start(&slot);
        Self {
            _root: root,
            network,
            outside,
            slot,
            guest,
        }
    }

    async fn set(&self, default: EgressDefault, allow: &[&str], deny: &[&str]) {
        let policy = policy(default, allow, deny);
        self.slot.set_egress(&policy).await.unwrap();
    }

    /// Whether the guest gets through to an address, or is told that it may not. Silence
    /// is neither.
    async fn reaches(&self, address: Ipv4Addr) -> bool {
        match self.guest.namespace.greeting_of(address, PATIENCE).await {
            Ok(_) => true,
            Err(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => false,
            Err(other) => panic!("{address}: {other:?}"),
        }
    }

    /// A connection from the guest to an address outside, and its other end.
    async fn connection(&self, to: Ipv4Addr) -> (TcpStream, TcpStream) {
        let listener = self.outside.namespace.within(|| {
            let listener = std::net::TcpListener::bind((to, 80)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        let listener = TcpListener::from_std(listener).unwrap();
        let socket = self.guest.namespace.within(|| TcpSocket::new_v4().unwrap());
        let (ours, theirs) = tokio::join!(socket.connect((to, 80).into()), listener.accept());
        (ours.unwrap(), theirs.unwrap().0)
    }

    async fn end(self) {
        self.slot.remove().await.unwrap();
        assert!(self.network.leftovers().await.unwrap().is_empty());
    }
}

async fn exchange(ours: &mut TcpStream, theirs: &mut TcpStream) -> std::io::Result<()> {
    let mut word = [0; 4];
    ours.write_all(b"ping").await?;
    theirs.read_exact(&mut word).await?;
    theirs.write_all(b"pong").await?;
    ours.read_exact(&mut word).await?;
    Ok(())
}

async fn arrives(socket: &UdpSocket, patience: Duration) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 64];
    let (length, from) = timeout(patience, socket.recv_from(&mut buffer))
        .await
        .ok()?
        .ok()?;
    Some((buffer[..length].to_vec(), from))
}

#[test]
fn lists_and_default_decide_in_their_order() {
    use EgressDefault::{AllowInternet, DenyAll};
    on_fresh_host(|| async {
        let world = World::make().await;
        let _greeter = Greeter::start(&world.outside.namespace);
        type Case<'a> = (EgressDefault, &'a [&'a str], &'a [&'a str], [bool; 2]);
        let cases: [Case<'_>; 7] = [
            (AllowInternet, &[], &[], [true, true]),
            (AllowInternet, &[], &["8.8.4.4/32"], [false, true]),
            (
                AllowInternet,
                &["8.8.4.5/32"],
                &["8.8.0.0/16"],
                [false, true],
            ),
            (
                AllowInternet,
                &["8.8.4.4/32"],
                &["0.0.0.0/0"],
                [true, false],
            ),
            (DenyAll, &[], &[], [false, false]),
            (DenyAll, &["8.8.4.4/31"], &[], [true, true]),
            (DenyAll, &["8.8.4.0/24"], &["8.8.4.4/32"], [true, true]),
        ];
        for (default, allow, deny, wanted) in cases {
            world.set(default, allow, deny).await;
            let reached = [world.reaches(PUBLIC).await, world.reaches(OTHER).await];
            assert_eq!(reached, wanted, "{default:?}, {allow:?}, {deny:?}");
        }
        world.end().await;
    });
}

#[test]
fn no_list_opens_what_is_closed_to_all() {
    on_fresh_host(|| async {
        let world = World::make().await;
        let host = Namespace::current();
        let outside = Greeter::start(&world.outside.namespace);
        let here = Greeter::start(&host);
        let everything = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "192.168.77.2/32",
            "169.254.169.254/32",
        ];
        world
            .set(EgressDefault::AllowInternet, &everything, &[])
            .await;
        assert!(world.reaches(PUBLIC).await, "what is public is open");
        for address in CLOSED.into_iter().chain([HOST_PRIVATE]) {
            assert!(!world.reaches(address).await, "{address} is open");
        }
        assert_eq!((outside.visits(), here.visits()), (1, 0));
        world.end().await;
    });
}

#[test]
fn the_host_reaches_a_guest_that_may_reach_nothing() {
    on_fresh_host(|| async {
        let world = World::make().await;
        let greeter = Greeter::start(&world.guest.namespace);
        let host = Namespace::current();
        for default in [EgressDefault::DenyAll, EgressDefault::AllowInternet] {
            world.set(default, &[], &["0.0.0.0/0"]).await;
            host.greeting_of(world.slot.reachable_address(), PATIENCE)
                .await
                .unwrap();
        }
        assert_eq!(greeter.visits(), 2);
        world.end().await;
    });
}

#[test]
fn a_connection_to_what_is_denied_later_is_cut() {
    on_fresh_host(|| async {
        let world = World::make().await;
        let (mut ours, mut theirs) = world.connection(PUBLIC).await;
        let (mut our_other, mut their_other) = world.connection(OTHER).await;
        exchange(&mut ours, &mut theirs).await.unwrap();
        exchange(&mut our_other, &mut their_other).await.unwrap();

        world
            .set(EgressDefault::AllowInternet, &[], &["8.8.4.4/32"])
            .await;
        // What the other end still says does not come in.
        theirs.write_all(b"secret").await.unwrap();
        let mut buffer = [0; 16];
        let heard = timeout(SILENCE, ours.read(&mut buffer)).await;
        assert!(heard.is_err(), "{heard:?}");
        // What is said to it fails, instead of hanging.
        ours.write_all(b"answer").await.unwrap();
        let cut = timeout(PATIENCE, ours.read(&mut buffer)).await.unwrap();
        assert_eq!(cut.unwrap_err().kind(), ErrorKind::ConnectionReset);
        // The neighbour's connection goes on.
        exchange(&mut our_other, &mut their_other).await.unwrap();
        world.end().await;
    });
}

#[test]
fn datagrams_stop_in_both_directions_and_start_again() {
    on_fresh_host(|| async {
        let world = World::make().await;
        let far = world.outside.namespace.udp((PUBLIC, 53));
        let near = world.guest.namespace.udp((Ipv4Addr::UNSPECIFIED, 0));
        near.connect((PUBLIC, 53)).await.unwrap();
        near.send(b"one").await.unwrap();
        let (text, from) = arrives(&far, PATIENCE).await.unwrap();
        assert_eq!(text, b"one");
        far.send_to(b"answer", from).await.unwrap();
        assert_eq!(arrives(&near, PATIENCE).await.unwrap().0, b"answer");

        world.set(EgressDefault::DenyAll, &[], &[]).await;
        far.send_to(b"late", from).await.unwrap();
        assert_eq!(arrives(&near, SILENCE).await, None);
        near.send(b"two").await.unwrap();
        // The refusal comes as the next error on the socket.
        let refused = timeout(PATIENCE, near.recv(&mut [0; 16])).await.unwrap();
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::HostUnreachable);

        world
            .set(EgressDefault::DenyAll, &["8.8.4.4/32"], &[])
            .await;
        near.send(b"three").await.unwrap();
        assert_eq!(arrives(&far, PATIENCE).await.unwrap().0, b"three");
        world.end().await;
    });
}

/// A packet meets the old policy or the new one, never none: the address that both leave
/// open is never refused, and the one that both refuse is never open.
#[test]
fn an_exchange_has_no_gap() {
    on_fresh_host(|| async {
        let world = World::make().await;
        let far = world.outside.namespace.udp((PUBLIC, 53));
        let denied = world.outside.namespace.udp((OTHER, 53));
        world
            .set(EgressDefault::DenyAll, &["8.8.4.4/32"], &[])
            .await;
        let near = world.guest.namespace.udp((Ipv4Addr::UNSPECIFIED, 0));

        let policies = [
            policy(EgressDefault::AllowInternet, &[], &["8.8.4.5/32"]),
            policy(EgressDefault::DenyAll, &["8.8.4.0/30", "8.8.4.4/32"], &[]),
        ];
        let changing = Cell::new(true);
        let change = async {
            for round in 0..200 {
                let next = &policies[round % policies.len()];
                world.slot.set_egress(next).await.unwrap();
            }
            changing.set(false);
        };
        let talk = async {
            while changing.get() {
                near.send_to(b"denied", (OTHER, 53)).await.unwrap();
                near.send_to(b"open", (PUBLIC, 53)).await.unwrap();
                assert!(arrives(&far, PATIENCE).await.is_some(), "a gap");
            }
        };
        tokio::join!(change, talk);
        assert_eq!(arrives(&denied, Duration::ZERO).await, None, "a gap");
        world.end().await;
    });
}

#[test]
fn the_longest_lists_are_taken() {
    on_fresh_host(|| async {
        let world = World::make().await;
        let _greeter = Greeter::start(&world.outside.namespace);
        // Every other address, so that nothing can be put together.
        let apart = |base: u32, count: usize| -> Vec<Ipv4Net> {
            let hosts = (base..).step_by(2).take(count);
            hosts.map(|bits| Ipv4Addr::from_bits(bits).into()).collect()
        };
        let half = MAX_EGRESS_ENTRIES / 2;
        let mut deny = apart(0x0101_0000, half - 1);
        deny.push(PUBLIC.into());
        let allow = apart(0x0201_0000, half);
        let longest = EgressPolicy::new(EgressDefault::AllowInternet, allow, deny).unwrap();
        for _ in 0..3 {
            world.slot.set_egress(&longest).await.unwrap();
            assert!(!world.reaches(PUBLIC).await);
            assert!(world.reaches(OTHER).await);
            world.set(EgressDefault::AllowInternet, &[], &[]).await;
            assert!(world.reaches(PUBLIC).await);
        }
        world.end().await;
    });
}

#[test]
fn a_slot_that_is_made_anew_has_no_policy_of_its_predecessor() {
    on_fresh_host(|| async {
        let world = World::make().await;
        let _greeter = Greeter::start(&world.outside.namespace);
        world.set(EgressDefault::DenyAll, &[], &[]).await;
        let pool = SlotPool::start(world.network.clone(), Default::default());
        let slot = pool.take("next").await.unwrap();
        let guest = Guest::start(&slot);
        guest.namespace.greeting_of(PUBLIC, PATIENCE).await.unwrap();
        slot.remove().await.unwrap();
        pool.drain().await.unwrap();
        world.end().await;
    });
}

/// As a VMM that was taken over might: it is inside the namespace and may turn on what the
/// slot has turned off.
#[test]
fn ipv6_stays_closed_from_inside_the_namespace() {
    const SIX: &str = "2001:4860:4860::8844";
    on_fresh_host(|| async {
        let world = World::make().await;
        world
            .set(EgressDefault::AllowInternet, &["0.0.0.0/0"], &[])
            .await;
        // A host that would route it, and a world that would answer.
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        let name = world.slot.number().name();
        ip("-6 address add 2001:db8:77::1/64 dev lan0 nodad");
        ip("-6 route add default via 2001:db8:77::2");
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0").unwrap();
        ip(&format!(
            "-6 address add 2001:db8:99::1/64 dev {name} nodad"
        ));
        world.outside.namespace.within(|| {
            ip("-6 address add 2001:db8:77::2/64 dev lan1 nodad");
            ip(&format!("-6 address add {SIX}/128 dev lan1 nodad"));
            ip("-6 route add default via 2001:db8:77::1");
        });
        let host = Namespace::current();
        let far = world.outside.namespace.udp((SIX, 53));
        let here = host.udp(("2001:db8:99::1", 53));
        let four = world.outside.namespace.udp((PUBLIC, 53));
        host.udp("[::]:0")
            .send_to(b"host", (SIX, 53))
            .await
            .unwrap();
        assert_eq!(arrives(&far, PATIENCE).await.unwrap().0, b"host");

        let gateway = mac_of(&name);
        let inside = Namespace::of_slot(&world.slot);
        let socket = inside.within(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/uplink/disable_ipv6", "0").unwrap();
            ip("-6 address add 2001:db8:99::2/64 dev uplink nodad");
            ip(&format!(
                "-6 neighbour replace 2001:db8:99::1 lladdr {gateway} dev uplink"
            ));
            ip("-6 route add default via 2001:db8:99::1 dev uplink");
            let socket = std::net::UdpSocket::bind("[2001:db8:99::2]:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        let socket = UdpSocket::from_std(socket).unwrap();
        let before = world.slot.counters().await.unwrap().sent.packets;
        for to in [SIX, "2001:db8:99::1"] {
            let to: SocketAddr = format!("[{to}]:53").parse().unwrap();
            socket.send_to(b"inside", to).await.unwrap();
        }
        // They did get to the host: what keeps them is its table, not a missing way.
        let sent = world.slot.counters().await.unwrap().sent.packets;
        assert!(sent >= before + 2, "nothing was sent");
        let near = world.guest.namespace.udp((Ipv4Addr::UNSPECIFIED, 0));
        near.send_to(b"four", (PUBLIC, 53)).await.unwrap();
        assert_eq!(arrives(&four, PATIENCE).await.unwrap().0, b"four");
        for socket in [&far, &here] {
            assert_eq!(
                arrives(socket, Duration::ZERO).await,
                None,
                "IPv6 came through"
            );
        }
        world.end().await;
    });
}

/// The hardware address of a link of the calling thread's namespace. (`/sys` shows those of
/// the namespace in which it was mounted.)
fn mac_of(link: &str) -> String {
    let output = std::process::Command::new("ip")
        .args(["-o", "link", "show", link])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace();
    words.find(|word| *word == "link/ether").unwrap();
    words.next().unwrap().to_owned()
}
