//! Slots that are made ahead.

use std::collections::HashSet;
use std::error::Error;
use std::num::NonZeroUsize;
use std::process::Command;
use std::time::{Duration, Instant};

use wrenn_core::network::{Leftovers, Network, NetworkSlot, PoolConfig, SlotPool};

use crate::doomed::{self, Doomed};
use crate::world::{Greeter, Guest, Namespace, PATIENCE, keep_none, narrow, on_fresh_host, open};

fn of_size(size: usize) -> PoolConfig {
    PoolConfig {
        size,
        makers: NonZeroUsize::new(2).unwrap(),
    }
}

async fn until_ready(pool: &SlotPool, count: usize) {
    let begun = Instant::now();
    while pool.ready() < count {
        assert!(begun.elapsed() < PATIENCE, "the pool does not fill");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What `ip` says about a slot's link.
fn shown(slot: &NetworkSlot) -> String {
    let output = Command::new("ip")
        .args(["link", "show", &slot.number().name()])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

async fn remove_all(slots: Vec<NetworkSlot>) {
    for slot in slots {
        slot.remove().await.unwrap();
    }
}

#[test]
fn a_slot_from_a_full_pool_was_there_before_and_works() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let pool = SlotPool::start(network.clone(), of_size(3));
        until_ready(&pool, 3).await;
        let before = network.leftovers().await.unwrap();
        assert_eq!(before.namespaces.len(), 3);

        let slot = pool.take("sandbox").await.unwrap();
        assert!(
            before.namespaces.contains(&slot.namespace_path()),
            "it was made when it was asked for"
        );
        // It is the sandbox's now, for whoever looks at the host.
        network.settled().await;
        assert!(shown(&slot).contains("alias sandbox"), "{}", shown(&slot));
        let guest = Guest::start(&slot);
        let greeter = Greeter::start(&guest.namespace);
        let host = Namespace::current();
        host.greeting_of(slot.reachable_address(), PATIENCE)
            .await
            .unwrap();
        assert_eq!(greeter.visits(), 1);

        // Another one takes its place.
        until_ready(&pool, 3).await;
        assert_eq!(network.leftovers().await.unwrap().namespaces.len(), 4);
        slot.remove().await.unwrap();
        pool.drain().await.unwrap();
        assert_eq!(network.leftovers().await.unwrap(), Leftovers::default());
    });
}

#[test]
fn many_takers_at_once_get_slots_of_their_own() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let pool = SlotPool::start(network.clone(), of_size(8));
        until_ready(&pool, 8).await;
        let names: Vec<String> = (0..50).map(|index| format!("sandbox-{index}")).collect();
        let takes = names.iter().map(|name| pool.take(name));
        let slots = futures::future::try_join_all(takes).await.unwrap();
        let numbers: HashSet<_> = slots.iter().map(NetworkSlot::number).collect();
        assert_eq!(numbers.len(), 50);
        network.settled().await;
        for (slot, name) in slots.iter().zip(&names) {
            let alias = format!("alias {name}\n");
            assert!(shown(slot).contains(&alias), "{}", shown(slot));
        }
        remove_all(slots).await;
        until_ready(&pool, 8).await;
        pool.drain().await.unwrap();
        assert!(network.leftovers().await.unwrap().is_empty());
    });
}

#[test]
fn a_drained_pool_leaves_nothing_and_still_gives() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let pool = SlotPool::start(network.clone(), of_size(8));
        // In the midst of filling it.
        until_ready(&pool, 1).await;
        pool.drain().await.unwrap();
        assert_eq!(pool.ready(), 0);
        assert!(network.leftovers().await.unwrap().is_empty());

        let slot = pool.take("late").await.unwrap();
        assert_eq!(network.leftovers().await.unwrap().slots, [slot.number()]);
        slot.remove().await.unwrap();
        pool.drain().await.unwrap();
        assert!(network.leftovers().await.unwrap().is_empty());
    });
}

#[test]
fn a_dropped_pool_gives_its_slots_back() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let pool = SlotPool::start(network.clone(), of_size(4));
        until_ready(&pool, 2).await;
        drop(pool);
        let begun = Instant::now();
        while !network.leftovers().await.unwrap().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "slots are left");
            network.settled().await;
        }
    });
}

#[test]
fn a_pool_that_cannot_fill_reports_why_and_recovers() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        // This host has six slots.
        let network = Network::open(narrow(), root.path(), keep_none)
            .await
            .unwrap();
        let pool = SlotPool::start(network.clone(), of_size(10));
        until_ready(&pool, 6).await;
        let mut slots = Vec::new();
        for index in 0..6 {
            slots.push(pool.take(&format!("sandbox-{index}")).await.unwrap());
        }
        for _ in 0..3 {
            let full = pool.take("one too many").await.unwrap_err();
            let cause = full.source().unwrap().to_string();
            assert_eq!(cause, "all 6 slots of this host are in use");
        }
        slots.pop().unwrap().remove().await.unwrap();
        until_ready(&pool, 1).await;
        slots.push(pool.take("in time").await.unwrap());
        remove_all(slots).await;
        pool.drain().await.unwrap();
        assert!(network.leftovers().await.unwrap().is_empty());
    });
}

/// Even by a caller that keeps every owner's: nobody could ask for a slot that waited.
#[test]
fn what_a_killed_pool_held_is_swept_by_the_next_start() {
    const THIS: &str = "pool::what_a_killed_pool_held_is_swept_by_the_next_start";
    if let Some(root) = doomed::root() {
        return doomed::live(async move {
            let pool = SlotPool::start(open(&root).await, of_size(4));
            let taken = pool.take("sandbox").await.unwrap();
            until_ready(&pool, 4).await;
            (pool, taken)
        });
    }
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let child = Doomed::start(THIS, root.path()).await;
        let held = network.leftovers().await.unwrap();
        assert_eq!(held.elements.len(), 2 * 5);
        assert_eq!(network.sweep(keep_none).await.unwrap(), [], "it lives");
        child.kill().await;

        let next = Network::open(Default::default(), root.path(), |_owner| true)
            .await
            .unwrap();
        let left = next.leftovers().await.unwrap();
        assert_eq!(left.slots.len(), 1, "only the sandbox's is kept");
        assert_eq!(left.namespaces.len(), 1);
        let last = open(root.path()).await;
        assert!(last.leftovers().await.unwrap().is_empty());
    });
}
