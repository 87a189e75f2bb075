//! That slots come, go, and leave nothing behind, however their owners end.

use std::future::Future;
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use wrenn_core::network::{Leftovers, Network, NetworkConfig, OpenNetworkError};

use crate::doomed::{self, Doomed};
use crate::world::{
    Greeter, Guest, Namespace, PATIENCE, copy_mount_table, ip, keep_none, narrow, on_fresh_host,
    open,
};

#[test]
fn a_slot_is_all_there_and_then_all_gone() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        assert_eq!(network.leftovers().await.unwrap(), Leftovers::default());

        let slot = network.create_slot("sandbox").await.unwrap();
        let there = network.leftovers().await.unwrap();
        let (number, address) = (slot.number(), slot.reachable_address());
        assert_eq!(there.namespaces, [slot.namespace_path()]);
        assert_eq!(there.links, [number.name()]);
        assert_eq!(there.slots, [number]);
        let elements = [
            format!("sources: {} . {address}", number.name()),
            format!("guests: {address}"),
        ];
        assert_eq!(there.elements, elements);

        slot.remove().await.unwrap();
        assert_eq!(network.leftovers().await.unwrap(), Leftovers::default());
        // As others see it, too.
        ip("netns list");
        let links = Command::new("ip")
            .args(["-o", "link"])
            .output()
            .unwrap()
            .stdout;
        assert!(!String::from_utf8_lossy(&links).contains("wrenn"));
    });
}

#[test]
fn many_slots_at_once_and_one_after_another() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let (mut making, mut removing) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let begun = Instant::now();
            let slot = network.create_slot("sandbox").await.unwrap();
            making.push(begun.elapsed());
            let begun = Instant::now();
            slot.remove().await.unwrap();
            removing.push(begun.elapsed());
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        println!(
            "made in {:?}, removed in {:?}",
            median(&mut making),
            median(&mut removing)
        );

        let begun = Instant::now();
        let names: Vec<String> = (0..8).map(|index| format!("sandbox-{index}")).collect();
        let slots =
            futures::future::try_join_all(names.iter().map(|name| network.create_slot(name)));
        let slots = slots.await.unwrap();
        println!("eight at once in {:?}", begun.elapsed());
        let numbers: std::collections::HashSet<_> =
            slots.iter().map(|slot| slot.number()).collect();
        assert_eq!(numbers.len(), 8);
        futures::future::try_join_all(slots.into_iter().map(|slot| slot.remove()))
            .await
            .unwrap();
        assert_eq!(network.leftovers().await.unwrap(), Leftovers::default());
    });
}

#[test]
fn a_dropped_slot_is_given_back() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        drop(slot);
        network.settled().await;
        assert_eq!(network.leftovers().await.unwrap(), Leftovers::default());
    });
}

#[test]
fn futures_that_are_dropped_leave_nothing() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..5 {
            let mut making = Box::pin(network.create_slot("sandbox"));
            assert!(matches!(making.as_mut().poll(&mut context), Poll::Pending));
            drop(making);
        }
        network.settled().await;
        assert_eq!(network.leftovers().await.unwrap(), Leftovers::default());

        let slot = network.create_slot("sandbox").await.unwrap();
        let mut removing = Box::pin(slot.remove());
        assert!(matches!(
            removing.as_mut().poll(&mut context),
            Poll::Pending
        ));
        drop(removing);
        network.settled().await;
        assert_eq!(network.leftovers().await.unwrap(), Leftovers::default());
    });
}

#[test]
fn what_a_killed_process_left_is_swept_and_the_living_are_spared() {
    const THIS: &str = "lifecycle::what_a_killed_process_left_is_swept_and_the_living_are_spared";
    if let Some(root) = doomed::root() {
        return doomed::live(async move {
            let network = open(&root).await;
            let mut slots = Vec::new();
            for _ in 0..3 {
                slots.push(network.create_slot("doomed").await.unwrap());
            }
            slots
        });
    }
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let living = network.create_slot("living").await.unwrap();
        let guest = Guest::start(&living);
        let greeter = Greeter::start(&guest.namespace);

        let child = Doomed::start(THIS, root.path()).await;
        let held = network.leftovers().await.unwrap();
        assert_eq!(held.slots.len(), 4);
        assert_eq!(
            network.sweep(keep_none).await.unwrap(),
            [],
            "the child still lives"
        );
        child.kill().await;

        // The next to open sweeps, and a second sweep has nothing to do.
        let next = open(root.path()).await;
        assert_eq!(next.sweep(keep_none).await.unwrap(), []);
        let left = next.leftovers().await.unwrap();
        assert_eq!(left.slots, [living.number()]);
        assert_eq!(left.links, [living.number().name()]);
        assert_eq!(left.namespaces, [living.namespace_path()]);
        assert_eq!(left.elements.len(), 2);
        let host = Namespace::current();
        host.greeting_of(living.reachable_address(), PATIENCE)
            .await
            .unwrap();
        assert_eq!(greeter.visits(), 1);
        living.remove().await.unwrap();
        assert!(next.leftovers().await.unwrap().is_empty());
    });
}

#[test]
fn root_directories_on_one_host_leave_each_other_alone() {
    on_fresh_host(|| async {
        let (root, other_root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let network = Network::open(narrow(), root.path(), keep_none)
            .await
            .unwrap();
        let mut slots = Vec::new();
        for _ in 0..3 {
            slots.push(network.create_slot("first root").await.unwrap());
        }
        // The other root finds names taken that it knows nothing of, and goes round them.
        let other = Network::open(narrow(), other_root.path(), keep_none)
            .await
            .unwrap();
        for _ in 0..3 {
            slots.push(other.create_slot("other root").await.unwrap());
        }
        let full = other.create_slot("one too many").await.unwrap_err();
        let cause = std::error::Error::source(&full).unwrap().to_string();
        assert_eq!(cause, "all 6 slots of this host are in use");

        assert_eq!(network.sweep(keep_none).await.unwrap(), []);
        assert_eq!(other.sweep(keep_none).await.unwrap(), []);
        assert_eq!(other.leftovers().await.unwrap().links.len(), 6);
        // A number that one root gave back is for the other to take.
        slots.remove(0).remove().await.unwrap();
        slots.push(other.create_slot("other root").await.unwrap());
        for slot in slots {
            slot.remove().await.unwrap();
        }
        assert!(network.leftovers().await.unwrap().is_empty());
        assert!(other.leftovers().await.unwrap().is_empty());
    });
}

/// A VMM starts with a copy of the mount table, so with a copy of every other slot's name.
#[test]
fn a_removed_name_is_gone_from_private_mount_tables_too() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        let name = slot.namespace_path();
        let (ready, copied) = std::sync::mpsc::channel();
        let (removed, wait) = std::sync::mpsc::channel();
        let elsewhere = std::thread::spawn(move || {
            copy_mount_table();
            let before = std::fs::read_link(&name).is_err() && name.exists();
            ready.send(before).unwrap();
            wait.recv().unwrap();
            name.exists()
        });
        assert!(copied.recv().unwrap(), "the copy has the name");
        slot.remove().await.unwrap();
        removed.send(()).unwrap();
        assert!(
            !elsewhere.join().unwrap(),
            "the copy keeps the namespace alive"
        );
    });
}

#[test]
fn opening_again_keeps_slots_in_use() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        let guest = Guest::start(&slot);
        let greeter = Greeter::start(&guest.namespace);
        let before = network.leftovers().await.unwrap();
        for _ in 0..3 {
            open(root.path()).await;
        }
        assert_eq!(network.leftovers().await.unwrap(), before);
        let host = Namespace::current();
        host.greeting_of(slot.reachable_address(), PATIENCE)
            .await
            .unwrap();
        assert_eq!(greeter.visits(), 1);
        slot.remove().await.unwrap();
    });
}

#[test]
fn networks_that_the_host_uses_are_refused() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        ip("link add office type veth peer name desk");
        ip("address add 10.12.200.1/24 dev office");
        ip("link set office up");
        let error = Network::open(NetworkConfig::default(), root.path(), keep_none)
            .await
            .unwrap_err();
        assert!(matches!(error, OpenNetworkError::Overlap { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with("10.12.0.0/16 overlaps the host's route to 10.12.200."),
            "{text}"
        );
        assert!(text.contains("office"), "{text}");
        let elsewhere = NetworkConfig::new(
            "10.11.0.0/16".parse().unwrap(),
            "172.20.0.0/16".parse().unwrap(),
        );
        Network::open(elsewhere.unwrap(), root.path(), keep_none)
            .await
            .unwrap();
    });
}

#[test]
fn a_tap_can_be_given_to_a_user() {
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let slot = network.create_slot("sandbox").await.unwrap();
        slot.grant_tap(1234, 5678).await.unwrap();
        let inside = Namespace::of_slot(&slot);
        let shown = inside.within(|| {
            Command::new("ip")
                .args(["-d", "link", "show", "tap0"])
                .output()
                .unwrap()
                .stdout
        });
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(
            shown.contains("user 1234") && shown.contains("group 5678"),
            "{shown}"
        );
        slot.remove().await.unwrap();
    });
}
