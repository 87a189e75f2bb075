//! What a slot has carried.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use wrenn_core::network::{NetworkSlot, SlotCounters};

use crate::world::{CLOSED, Guest, Outside, PATIENCE, PUBLIC, ip, on_fresh_host, open};

const DATAGRAMS: u64 = 20;
const TEXT: [u8; 1_000] = [7; 1_000];
/// Ethernet, IPv4 and UDP headers.
const HEADERS: u64 = 14 + 20 + 8;

/// The counters, when the slot has sent and received that many packets.
async fn counted(slot: &NetworkSlot, sent: u64, received: u64) -> SlotCounters {
    let begun = Instant::now();
    loop {
        let counters = slot.counters().await.unwrap();
        if (counters.sent.packets, counters.received.packets) == (sent, received) {
            return counters;
        }
        assert!(begun.elapsed() < PATIENCE, "{counters:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_slot_counts_what_its_guest_sends_and_receives() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        assert_eq!(slot.counters().await.unwrap(), SlotCounters::default());
        let guest = Guest::start(&slot);

        let sink = outside.namespace.udp((PUBLIC, 53));
        let socket = guest.namespace.udp((Ipv4Addr::UNSPECIFIED, 0));
        for _ in 0..DATAGRAMS {
            socket.send_to(&TEXT, (PUBLIC, 53)).await.unwrap();
        }
        let counters = counted(&slot, DATAGRAMS, 0).await;
        let bytes = DATAGRAMS * (TEXT.len() as u64 + HEADERS);
        assert_eq!((counters.sent.bytes, counters.received.bytes), (bytes, 0));

        let mut buffer = [0; 2048];
        let (_, from) = sink.recv_from(&mut buffer).await.unwrap();
        sink.send_to(&TEXT, from).await.unwrap();
        let counters = counted(&slot, DATAGRAMS, 1).await;
        assert_eq!(counters.received.bytes, TEXT.len() as u64 + HEADERS);

        // What is refused has not left the sandbox.
        drop(socket.send_to(&TEXT, (CLOSED[0], 53)).await);
        drop(socket.send_to(&TEXT, (PUBLIC, 53)).await);
        drop(socket.send_to(&TEXT, (PUBLIC, 53)).await);
        counted(&slot, DATAGRAMS + 2, 1).await;

        ip(&format!("link delete {}", slot.number().name()));
        assert!(slot.counters().await.is_err());
        slot.remove().await.unwrap();
    });
}
