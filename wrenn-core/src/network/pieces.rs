//! What a slot consists of: how it is made, adopted and given back.
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
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::config::{
    GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC, GUEST_PREFIX, MacAddress, TAP_NAME,
};
use super::egress::EgressPolicy;
use super::host::Host;
use super::lease::{LeaseError, Record, SlotLease};
use super::link::{Links, Request, UPLINK_NAME, VethEnd};
use super::namespace;
use super::nftables::Firewall;
use super::plan::SlotNumber;
use super::policy;
use super::remains::{remove_remains, usable};
use super::slot::{CreateSlotError, RemoveSlotError};
use super::sys;
use crate::Chain;

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

/// What has to be given back. Plain data: whoever holds it decides when.
#[derive(Debug)]
pub(super) struct Pieces {
    lease: SlotLease,
    /// Keeps the namespace alive while the slot is, whatever happens to its name.
    namespace: Arc<OwnedFd>,
    inode: u64,
}

/// Gives a slot back in the background: tries, logs, and in the end leaves it to a sweep.
pub(super) fn retire(host: Arc<Host>, pieces: Pieces) {
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
    pub(super) const fn new(lease: SlotLease, namespace: Arc<OwnedFd>, inode: u64) -> Self {
        Self {
            lease,
            namespace,
            inode,
        }
    }

    pub(super) const fn slot(&self) -> SlotNumber {
        self.lease.slot()
    }

    pub(super) fn namespace(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.namespace)
    }

    /// Makes a slot. Runs on a thread of its own, which ends up in the host's namespace.
    pub(super) fn build(host: &Host, owner: &str) -> Result<Self, CreateSlotError> {
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
        let capacity = host.plan().capacity();
        let mut lease = host
            .slots()
            .lease_any(capacity, |lease| usable(&mut host_links, lease))?;
        let namespace = namespace::enter_new()?;
        let inode = namespace::inode(&namespace)?;
        lease.write(&Record::new(owner, inode))?;
        let pieces = Self::new(lease, Arc::new(namespace), inode);
        match pieces.furnish(host, &mut host_links, owner) {
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
        let mut rules = policy::slot_table(plan.reachable(slot), host.connection_limits());
        policy::exchange_open(&mut rules, &EgressPolicy::default());
        Firewall::open()?.commit(&rules)?;
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
        host.with_firewall(|firewall| firewall.commit(&policy::open_slot(&plan, slot)))?;
        Ok(())
    }

    /// Writes down another owner.
    pub(super) fn relabel(&mut self, owner: &str) -> Result<(), LeaseError> {
        self.lease.write(&Record::new(owner, self.inode))
    }

    /// Removes everything. What could not be removed comes back with the reason.
    pub(super) fn tear_down(self, host: &Host) -> Result<(), (Self, RemoveSlotError)> {
        let begun = Instant::now();
        let slot = self.lease.slot();
        let removed = namespace::enter(host.namespace())
            .map_err(RemoveSlotError::from)
            .and_then(|()| {
                let mut links = Links::open()?;
                remove_remains(host, &mut links, slot, Some(self.inode))
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
