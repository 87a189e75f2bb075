//! Taking over the slots of VMs that outlived the process which started them.

use std::error::Error;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use wrenn_core::network::{
    AdoptSlotError, EgressDefault, EgressPolicy, Leftovers, Network, NetworkConfig, SlotNumber,
};

use crate::doomed::{self, Doomed};
use crate::firewall::delete_table;
use crate::world::{
    Greeter, Guest, HOST_PRIVATE, Namespace, OTHER, Outside, PATIENCE, PUBLIC, ip, keep_none,
    on_fresh_host, open,
};

const OWNER: &str = "sandbox";

/// Opens the network as a restarted agent does, which knows that its sandbox still runs.
async fn reopen(root: &Path) -> Network {
    Network::open(NetworkConfig::default(), root, |owner| owner == OWNER)
        .await
        .unwrap()
}

/// Has a child make a slot and die. Returns the slot's number.
async fn orphan(test: &str, root: &Path) -> SlotNumber {
    let network = open(root).await;
    Doomed::start(test, root).await.kill().await;
    let slots = network.leftovers().await.unwrap().slots;
    assert_eq!(slots.len(), 1);
    slots[0]
}

/// The child's part.
fn make_a_slot(root: &Path) {
    doomed::live(async {
        let slot = open(root).await.create_slot(OWNER).await.unwrap();
        // Any policy but the default, to see that it survives.
        let only = vec![PUBLIC.into()];
        let policy = EgressPolicy::new(EgressDefault::DenyAll, only, vec![]).unwrap();
        slot.set_egress(&policy).await.unwrap();
        slot
    });
}

fn named(slot: SlotNumber) -> std::path::PathBuf {
    Path::new("/run/netns").join(slot.name())
}

#[test]
fn an_adopted_slot_is_like_one_of_ones_own() {
    const THIS: &str = "adopt::an_adopted_slot_is_like_one_of_ones_own";
    if let Some(root) = doomed::root() {
        return make_a_slot(&root);
    }
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let outside = Outside::attach();
        outside
            .namespace
            .within(|| ip(&format!("address add {OTHER}/32 dev lan1")));
        let far = Greeter::start(&outside.namespace);
        let number = orphan(THIS, root.path()).await;
        let guest = Guest::start_in(&Namespace::named(&named(number)));
        let near = Greeter::start(&guest.namespace);

        let network = reopen(root.path()).await;
        // Others may come and go meanwhile.
        let other = network.create_slot("other").await.unwrap();
        assert_ne!(other.number(), number);
        let slot = network.adopt(number, OWNER).await.unwrap();
        assert_eq!(slot.number(), number);
        let again = network.adopt(number, OWNER).await.unwrap_err();
        assert!(matches!(again, AdoptSlotError::InUse { .. }), "{again}");

        // Both ways, and only where the policy of its first owner lets it.
        let host = Namespace::current();
        let greeted = host.greeting_of(slot.reachable_address(), PATIENCE);
        greeted.await.unwrap();
        assert_eq!(near.visits(), 1);
        let greeting = guest.namespace.greeting_of(PUBLIC, PATIENCE).await;
        assert_eq!(greeting.as_deref(), Ok(HOST_PRIVATE.to_string().as_str()));
        assert_eq!(far.visits(), 1);
        let refused = guest.namespace.greeting_of(OTHER, PATIENCE).await;
        assert!(refused.is_err(), "the egress policy is gone");

        // Its new owner is alive, so it stays.
        assert_eq!(network.sweep(keep_none).await.unwrap(), []);
        slot.set_egress(&EgressPolicy::default()).await.unwrap();
        let greeted = guest.namespace.greeting_of(OTHER, PATIENCE);
        greeted.await.unwrap();
        slot.remove().await.unwrap();
        other.remove().await.unwrap();
        assert_eq!(network.leftovers().await.unwrap(), Leftovers::default());
    });
}

#[test]
fn a_connection_goes_on_through_death_and_adoption() {
    const THIS: &str = "adopt::a_connection_goes_on_through_death_and_adoption";
    if let Some(root) = doomed::root() {
        return make_a_slot(&root);
    }
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let network = open(root.path()).await;
        let child = Doomed::start(THIS, root.path()).await;
        let number = network.leftovers().await.unwrap().slots[0];
        let guest = Guest::start_in(&Namespace::named(&named(number)));
        let listener = guest.namespace.within(|| {
            let listener = std::net::TcpListener::bind("0.0.0.0:80").unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        let listener = TcpListener::from_std(listener).unwrap();
        let address = network.plan().reachable(number);
        let connecting = TcpSocket::new_v4().unwrap().connect((address, 80).into());
        let (ours, theirs) = tokio::join!(connecting, listener.accept());
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);

        child.kill().await;
        let slot = reopen(root.path())
            .await
            .adopt(number, OWNER)
            .await
            .unwrap();
        let mut word = [0; 4];
        ours.write_all(b"ping").await.unwrap();
        theirs.read_exact(&mut word).await.unwrap();
        theirs.write_all(b"pong").await.unwrap();
        ours.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"pong");
        slot.remove().await.unwrap();
    });
}

#[test]
fn a_flushed_host_table_is_repaired() {
    const THIS: &str = "adopt::a_flushed_host_table_is_repaired";
    if let Some(root) = doomed::root() {
        return make_a_slot(&root);
    }
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let number = orphan(THIS, root.path()).await;
        let guest = Guest::start_in(&Namespace::named(&named(number)));
        let greeter = Greeter::start(&guest.namespace);
        // Once before the network is opened, once after.
        delete_table();
        let network = reopen(root.path()).await;
        assert_eq!(network.leftovers().await.unwrap().elements.len(), 0);
        delete_table();
        let slot = network.adopt(number, OWNER).await.unwrap();
        assert_eq!(network.leftovers().await.unwrap().elements.len(), 2);
        let host = Namespace::current();
        let greeted = host.greeting_of(slot.reachable_address(), PATIENCE);
        greeted.await.unwrap();
        assert_eq!(greeter.visits(), 1);
        slot.remove().await.unwrap();
        assert!(network.leftovers().await.unwrap().is_empty());
    });
}

#[test]
fn what_is_not_ones_own_is_refused_and_stays() {
    const THIS: &str = "adopt::what_is_not_ones_own_is_refused_and_stays";
    if let Some(root) = doomed::root() {
        return make_a_slot(&root);
    }
    on_fresh_host(|| async {
        let root = tempfile::tempdir().unwrap();
        let number = orphan(THIS, root.path()).await;
        let network = reopen(root.path()).await;
        let before = network.leftovers().await.unwrap();
        let foreign = network.adopt(number, "somebody else").await.unwrap_err();
        assert_eq!(
            foreign.to_string(),
            format!("slot {number} belongs to sandbox, not to somebody else")
        );
        let nobodys = SlotNumber::new(if number.get() == 9 { 8 } else { 9 }).unwrap();
        let missing = network.adopt(nobodys, OWNER).await.unwrap_err();
        assert!(
            matches!(missing, AdoptSlotError::NoSuchSlot { .. }),
            "{missing}"
        );
        assert_eq!(network.leftovers().await.unwrap(), before);
        // Whose slot it is may still have it.
        let slot = network.adopt(number, OWNER).await.unwrap();
        slot.remove().await.unwrap();
        assert!(network.leftovers().await.unwrap().is_empty());
    });
}

#[test]
fn a_slot_that_lost_something_is_refused_and_can_be_swept() {
    const THIS: &str = "adopt::a_slot_that_lost_something_is_refused_and_can_be_swept";
    if let Some(root) = doomed::root() {
        return make_a_slot(&root);
    }
    type Loss = (fn(SlotNumber), &'static str);
    let losses: [Loss; 5] = [
        (
            |slot| ip(&format!("netns delete {}", slot.name())),
            "network namespace of slot",
        ),
        (
            |slot| {
                ip(&format!("netns delete {}", slot.name()));
                ip(&format!("netns add {}", slot.name()));
            },
            "network namespace of slot",
        ),
        (
            |slot| ip(&format!("link delete {}", slot.name())),
            "link uplink is not there",
        ),
        (
            |slot| ip(&format!("link set {} down", slot.name())),
            "the host's way to 10.11.",
        ),
        (
            |slot| Namespace::named(&named(slot)).within(delete_table),
            "has no firewall rules",
        ),
    ];
    for (lose, wanted) in losses {
        on_fresh_host(|| async move {
            let root = tempfile::tempdir().unwrap();
            let number = orphan(THIS, root.path()).await;
            let network = reopen(root.path()).await;
            lose(number);
            let error = network.adopt(number, OWNER).await.unwrap_err();
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            let text = format!("{error}: {cause}");
            assert!(text.contains(wanted), "{text}");
            // Kept as long as somebody wants it, gone when nobody does.
            let kept = network.sweep(|owner| owner == OWNER).await.unwrap();
            assert_eq!(kept, []);
            assert_eq!(network.sweep(keep_none).await.unwrap(), [number]);
            let mut left = network.leftovers().await.unwrap();
            // A namespace that somebody else put in its place is not ours to remove.
            left.namespaces.retain(|path| *path != named(number));
            assert!(left.is_empty(), "{left:?}");
        });
    }
}
