//! One slot: how it is made, what it offers, how it is given back.
//!
//! The order matters. Rules stand before there is an interface that they could apply to,
//! and the host opens for a slot last and closes for it first:
//!
//! | making | giving back |
//! |---|---|
//! | lease a number, write down what follows | |
//! | namespace, its settings, its table | close the host's table |
//! | TAP, veth pair, addresses, routes | veth pair |
//! | open the host's table | name of the namespace |
//! | | number |
//!
//! On a two-core virtual machine a slot is made in 5 ms and removed in 32 ms, of which the
//! kernel spends 20 ms waiting for its own readers to let go of the veth pair.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::config::{
    GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC, GUEST_PREFIX, MacAddress, TAP_NAME,
};
use super::host::{Chain, Host, on_thread};
use super::lease::{LeaseError, Record, SlotLease};
use super::link::{LinkError, Links, Request, UPLINK_NAME, VethEnd};
use super::namespace::{self, NamespaceError};
use super::nftables::{Firewall, NftError};
use super::plan::SlotNumber;
use super::policy;
use super::remains::{remove_remains, usable};
use super::sys::{self, TapOwner};

/// Both ends of a veth pair share the address bits of a /31.
const LINK_PREFIX: u8 = 31;
const EVERYWHERE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

/// How often the making of a slot starts over because another root directory on this host
/// took the number in between.
const ATTEMPTS: usize = 16;

/// How long the reaper waits before each further attempt at what failed.
const RETRY_AFTER: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// Why a slot could not be made. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum CreateSlotError {
    #[error("cannot lease a network slot")]
    Lease(#[from] LeaseError),
    #[error("cannot make the slot's network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("cannot make the slot's links")]
    Link(#[from] LinkError),
    #[error("cannot set the slot's firewall rules")]
    Firewall(#[from] NftError),
    #[error("cannot make TAP {TAP_NAME} with {device}", device = sys::TUN_DEVICE)]
    Tap {
        #[source]
        source: std::io::Error,
    },
    #[error("cannot run a thread to make the slot on")]
    Thread {
        #[source]
        source: std::io::Error,
    },
}

impl CreateSlotError {
    /// Whether somebody else has a name that this slot needs.
    fn is_taken(&self) -> bool {
        match self {
            Self::Namespace(error) => error.already_there(),
            Self::Link(error) => error.already_there(),
            _ => false,
        }
    }
}

/// Why a slot could not be given back. A reaper goes on trying, and what it can't remove
/// is left to the next sweep.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum RemoveSlotError {
    #[error("cannot remove the slot's network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("cannot look at the namespace's name {path}", path = path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot remove the slot's links")]
    Link(#[from] LinkError),
    #[error("cannot remove the slot from the host's firewall")]
    Firewall(#[from] NftError),
    #[error("cannot give the slot number back")]
    Lease(#[from] LeaseError),
    #[error("cannot run a thread to remove the slot on")]
    Thread {
        #[source]
        source: std::io::Error,
    },
}

/// Why a TAP could not be given to a user.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum GrantTapError {
    #[error("cannot enter the slot's network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("cannot change the owner of TAP {TAP_NAME}")]
    Tap {
        #[source]
        source: std::io::Error,
    },
    #[error("cannot run a thread in the slot's namespace")]
    Thread {
        #[source]
        source: std::io::Error,
    },
}

/// A network identity, ready for a VM: start the VMM in [`namespace_path`] with the TAP
/// [`tap_name`], and give the guest [`guest_address`] and [`gateway`].
///
/// [`namespace_path`]: Self::namespace_path
/// [`tap_name`]: Self::tap_name
/// [`guest_address`]: Self::guest_address
/// [`gateway`]: Self::gateway
#[must_use = "dropping a slot gives it back in the background"]
#[derive(Debug)]
pub struct NetworkSlot {
    host: Arc<Host>,
    number: SlotNumber,
    /// There until the slot is given back.
    pieces: Option<Pieces>,
}

/// What has to be given back. Plain data: whoever holds it decides when.
#[derive(Debug)]
pub(super) struct Pieces {
    lease: SlotLease,
    /// Keeps the namespace alive while the slot is, whatever happens to its name.
    namespace: Arc<OwnedFd>,
    inode: u64,
}

impl NetworkSlot {
    pub(super) async fn create(host: Arc<Host>, owner: &str) -> Result<Self, CreateSlotError> {
        let owner = owner.to_owned();
        let busy = host.count_busy();
        // If nobody waits any more when the slot is ready, it is dropped on that thread,
        // which gives it back. The count goes behind it, so that it never seems settled.
        let (slot, _busy) = on_thread("wrenn-slot", move || (Self::build(host, &owner), busy))
            .await
            .map_err(|source| CreateSlotError::Thread { source })?;
        slot
    }

    fn build(host: Arc<Host>, owner: &str) -> Result<Self, CreateSlotError> {
        let begun = Instant::now();
        let pieces = Pieces::build(&host, owner)?;
        let number = pieces.lease.slot();
        tracing::debug!(slot = %number, owner, elapsed = ?begun.elapsed(), "network slot made");
        Ok(Self {
            host,
            number,
            pieces: Some(pieces),
        })
    }

    /// The slot's number.
    pub const fn number(&self) -> SlotNumber {
        self.number
    }

    /// The file behind which the slot's network namespace is: open it and `setns`.
    pub fn namespace_path(&self) -> PathBuf {
        namespace::path_of(self.number)
    }

    /// The name of the TAP in the slot's namespace. It is up, persistent, has one queue,
    /// and expects frames with a virtio-net header.
    pub const fn tap_name(&self) -> &'static str {
        TAP_NAME
    }

    /// The MAC address that the guest must have: the host sends frames to no other.
    pub const fn guest_mac(&self) -> MacAddress {
        GUEST_MAC
    }

    /// The address that the guest must have, in a network of this prefix length.
    pub const fn guest_address(&self) -> (Ipv4Addr, u8) {
        (GUEST_ADDRESS, GUEST_PREFIX)
    }

    /// The guest's gateway.
    pub const fn gateway(&self) -> Ipv4Addr {
        GATEWAY_ADDRESS
    }

    /// The address at which the host reaches the guest.
    pub fn reachable_address(&self) -> Ipv4Addr {
        self.host.plan().reachable(self.number)
    }

    /// Lets a user and group open the TAP, so that a VMM needs no privilege for it. To be
    /// called before the VMM opens it.
    ///
    /// # Errors
    /// When the TAP is open already, or the thread that enters the namespace can't start.
    pub async fn grant_tap(&self, user: u32, group: u32) -> Result<(), GrantTapError> {
        let Some(pieces) = &self.pieces else {
            return Ok(());
        };
        let namespace = Arc::clone(&pieces.namespace);
        on_thread("wrenn-tap", move || {
            namespace::enter(namespace.as_fd())?;
            sys::keep_tap(TAP_NAME, Some(TapOwner { user, group }))
                .map_err(|source| GrantTapError::Tap { source })
        })
        .await
        .map_err(|source| GrantTapError::Thread { source })?
    }

    /// Goes away without it: it stays as it is, and a later program takes it over.
    pub fn leave(mut self) {
        // The lease's lock goes with its file, the slot stays.
        drop(self.pieces.take());
    }

    /// Gives the slot back. Processes that are still in its namespace lose their network.
    ///
    /// # Errors
    /// When the kernel refuses a step. A reaper then tries again in the background.
    ///
    /// # Cancel safety
    /// Once begun, the removal goes on without the future.
    pub async fn remove(mut self) -> Result<(), RemoveSlotError> {
        let Some(pieces) = self.pieces.take() else {
            return Ok(());
        };
        let host = Arc::clone(&self.host);
        let busy = host.count_busy();
        on_thread("wrenn-slot", move || {
            let _counted_until_done = busy;
            pieces.tear_down(&host).map_err(|(pieces, error)| {
                retire(Arc::clone(&host), pieces);
                error
            })
        })
        .await
        .map_err(|source| RemoveSlotError::Thread { source })?
    }
}

impl Drop for NetworkSlot {
    fn drop(&mut self) {
        if let Some(pieces) = self.pieces.take() {
            retire(Arc::clone(&self.host), pieces);
        }
    }
}

/// Gives a slot back in the background: tries, logs, and in the end leaves it to a sweep.
fn retire(host: Arc<Host>, pieces: Pieces) {
    let busy = host.count_busy();
    let slot = pieces.lease.slot();
    let spawned = std::thread::Builder::new().name("wrenn-reaper".into()).spawn(move || {
        let _counted_until_done = busy;
        let mut pieces = pieces;
        let mut pauses = RETRY_AFTER.into_iter();
        loop {
            let (kept, error) = match pieces.tear_down(&host) {
                Ok(()) => return,
                Err(failed) => failed,
            };
            let chain = Chain(&error);
            let Some(pause) = pauses.next() else {
                tracing::error!(%slot, error = %chain, "network slot is left to the next sweep");
                return;
            };
            tracing::warn!(%slot, error = %chain, "network slot could not be removed; trying again");
            pieces = kept;
            std::thread::sleep(pause);
        }
    });
    if let Err(error) = spawned {
        // The pieces went with the closure: lock and descriptor are released, the rest
        // is what a sweep finds.
        tracing::error!(%slot, %error, "no thread to remove a network slot; left to the next sweep");
    }
}

impl Pieces {
    /// Makes a slot. Runs on a thread of its own, which ends up in the host's namespace.
    fn build(host: &Host, owner: &str) -> Result<Self, CreateSlotError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::build_once(host, owner) {
                Err(error) if error.is_taken() => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or(
            LeaseError::Full {
                capacity: host.plan().capacity(),
            }
            .into(),
        ))
    }

    fn build_once(host: &Host, owner: &str) -> Result<Self, CreateSlotError> {
        namespace::enter(host.namespace())?;
        let mut host_links = Links::open()?;
        let mut host_firewall = Firewall::open()?;
        let capacity = host.plan().capacity();
        let mut lease = host.slots().lease_any(capacity, |lease| {
            usable(host, &mut host_links, &mut host_firewall, lease)
        })?;
        let namespace = namespace::enter_new()?;
        let inode = namespace::inode(&namespace)?;
        lease.write(&Record::new(owner, inode))?;
        let pieces = Self {
            lease,
            namespace: Arc::new(namespace),
            inode,
        };
        match pieces.furnish(host, &mut host_links, &mut host_firewall, owner) {
            Ok(()) => Ok(pieces),
            Err(error) => {
                let slot = pieces.lease.slot();
                if let Err((_, undo)) = pieces.tear_down(host) {
                    let chain = Chain(&undo);
                    tracing::warn!(%slot, error = %chain, "half-made slot is left to the next sweep");
                }
                Err(error)
            }
        }
    }

    /// Fills the namespace in which the calling thread is, and ties it to the host.
    fn furnish(
        &self,
        host: &Host,
        host_links: &mut Links,
        host_firewall: &mut Firewall,
        owner: &str,
    ) -> Result<(), CreateSlotError> {
        let plan = host.plan();
        let slot = self.lease.slot();
        let name = slot.name();
        let [a, b, c] = host.slots().identity();
        let [high, low] = slot.get().to_be_bytes();
        let host_mac = MacAddress([0x02, a, b, c, high, low]);
        let uplink_mac = MacAddress([0x06, a, b, c, high, low]);

        // In the slot.
        namespace::pin(&namespace::path_of(slot))?;
        namespace::set("ipv6/conf/all/disable_ipv6", "1", true)?;
        namespace::set("ipv6/conf/default/disable_ipv6", "1", true)?;
        namespace::set("ipv4/ip_forward", "1", false)?;
        // Errors go to the slot's own guest alone. Were they rationed, most of what it may
        // not reach would seem to be silent.
        namespace::set("ipv4/icmp_ratelimit", "0", true)?;
        Firewall::open()?.commit(&policy::slot_table(plan.reachable(slot)))?;
        sys::keep_tap(TAP_NAME, None).map_err(|source| CreateSlotError::Tap { source })?;
        let mut slot_links = Links::open()?;

        // On the host.
        namespace::enter(host.namespace())?;
        host_links.execute(vec![Request::add_veth(
            &VethEnd {
                name: &name,
                mac: host_mac,
            },
            &VethEnd {
                name: UPLINK_NAME,
                mac: uplink_mac,
            },
            self.namespace.as_fd(),
        )])?;
        namespace::set(&format!("ipv6/conf/{name}/disable_ipv6"), "1", true)?;
        let index = host_links.index_of(&name)?;
        host_links.execute(vec![
            Request::set_up(index, None, Some(owner)),
            Request::add_address(index, plan.link_host(slot), LINK_PREFIX),
            Request::add_neighbour(index, plan.link_slot(slot), uplink_mac),
        ])?;

        // In the slot again: a socket stays in the namespace where it was opened.
        let uplink = slot_links.index_of(UPLINK_NAME)?;
        let tap = slot_links.index_of(TAP_NAME)?;
        slot_links.execute(vec![
            Request::set_up(tap, Some(GATEWAY_MAC), None),
            Request::add_address(tap, GATEWAY_ADDRESS, GUEST_PREFIX),
            Request::add_neighbour(tap, GUEST_ADDRESS, GUEST_MAC),
            Request::set_up(uplink, None, None),
            Request::add_address(uplink, plan.link_slot(slot), LINK_PREFIX),
            Request::add_neighbour(uplink, plan.link_host(slot), host_mac),
            Request::add_route(EVERYWHERE, plan.link_host(slot), uplink),
        ])?;
        let guest = Ipv4Net::from(plan.reachable(slot));
        host_links.execute(vec![Request::add_route(guest, plan.link_slot(slot), index)])?;
        host_firewall.commit(&policy::open_slot(&plan, slot))?;
        Ok(())
    }

    /// Removes everything. What could not be removed comes back with the reason.
    fn tear_down(self, host: &Host) -> Result<(), (Self, RemoveSlotError)> {
        let begun = Instant::now();
        let slot = self.lease.slot();
        let removed = namespace::enter(host.namespace())
            .map_err(RemoveSlotError::from)
            .and_then(|()| {
                let mut links = Links::open()?;
                let mut firewall = Firewall::open()?;
                remove_remains(host, &mut links, &mut firewall, slot, Some(self.inode))
            });
        match removed {
            Ok(()) => {
                tracing::debug!(%slot, elapsed = ?begun.elapsed(), "network slot removed");
                // A number that stays taken is a nuisance for later, not a failure of this.
                if let Err(error) = self.lease.release() {
                    let chain = Chain(&error);
                    tracing::warn!(%slot, error = %chain, "slot file is left to the next sweep");
                }
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }
}
