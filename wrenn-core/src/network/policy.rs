//! Which packets pass: the rules of the host's table and of each slot's.
//!
//! Both ends of the veth pair hold the same line. The slot's own table is where a guest
//! meets the policy and is told that it may not; the host's table does not rely on it,
//! so that a process that has taken over a slot's namespace gets no further. Only what one
//! sandbox may less than others, its [`EgressPolicy`], is in its slot's table alone.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::config::{ConnectionLimits, GATEWAY_ADDRESS, GUEST_ADDRESS, TAP_NAME};
use super::egress::EgressPolicy;
use super::link::UPLINK_NAME;
use super::nftables::{Batch, Chain, Hook, KeyType, Policy, Rule, Set, SetKey, intervals};
use super::plan::{AddressPlan, NAME_PREFIX, SlotNumber};
use super::ranges::AddressRanges;

/// The name of our table, on the host and in each slot's namespace.
pub(super) const TABLE: &str = "wrenn";

/// What no sandbox reaches: everything that the IANA special-purpose registry does not
/// call globally reachable, multicast, and the one public address at which a cloud has
/// services for its hosts.
const CLOSED_NETWORKS: [(Ipv4Addr, u8); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),        // this network
    (Ipv4Addr::new(10, 0, 0, 0), 8),       // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),    // carrier-grade NAT
    (Ipv4Addr::new(127, 0, 0, 0), 8),      // loopback
    (Ipv4Addr::new(168, 63, 129, 16), 32), // Azure's services for hosts, secrets among them
    (Ipv4Addr::new(169, 254, 0, 0), 16),   // link-local, metadata services
    (Ipv4Addr::new(172, 16, 0, 0), 12),    // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),     // protocol assignments
    (Ipv4Addr::new(192, 0, 2, 0), 24),     // documentation
    (Ipv4Addr::new(192, 88, 99, 0), 24),   // 6to4 relays, withdrawn
    (Ipv4Addr::new(192, 168, 0, 0), 16),   // private
    (Ipv4Addr::new(198, 18, 0, 0), 15),    // benchmarking
    (Ipv4Addr::new(198, 51, 100, 0), 24),  // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),   // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4),      // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),      // reserved, and broadcast
];

/// Destinations that are closed.
pub(super) const CLOSED: Set = Set {
    name: "closed",
    key: KeyType::Address,
    interval: true,
};
/// Destinations that a slot's egress policy leaves open.
const OPEN: Set = Set {
    name: "open",
    key: KeyType::Address,
    interval: true,
};
/// Which link may carry which source address: one element per slot.
pub(super) const SOURCES: Set = Set {
    name: "sources",
    key: KeyType::InterfaceAndAddress,
    interval: false,
};
/// Addresses that are translated to the host's on their way out: one element per slot.
pub(super) const GUESTS: Set = Set {
    name: "guests",
    key: KeyType::Address,
    interval: false,
};

/// Priorities as `nft` names them: before connection tracking, and the usual places.
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SRCNAT: i32 = 100;

const fn chain(
    name: &'static str,
    kind: &'static str,
    hook: Hook,
    priority: i32,
    policy: Policy,
) -> Chain {
    Chain {
        name,
        kind,
        hook,
        priority,
        policy,
    }
}

/// The host's table. Safe to commit again at any time: what is there stays, slots keep
/// their elements, and the rules are exchanged in the same instant.
///
/// Packets that neither come from nor go to a link of ours pass through untouched.
pub(super) fn host_table() -> Batch {
    const PINNING: Chain = chain(
        "pinning",
        "filter",
        Hook::Prerouting,
        PRIORITY_RAW,
        Policy::Accept,
    );
    const INPUT: Chain = chain(
        "input",
        "filter",
        Hook::Input,
        PRIORITY_FILTER,
        Policy::Accept,
    );
    const FORWARD: Chain = chain(
        "forward",
        "filter",
        Hook::Forward,
        PRIORITY_FILTER,
        Policy::Accept,
    );
    const OUTWARD: Chain = chain(
        "outward",
        "nat",
        Hook::Postrouting,
        PRIORITY_SRCNAT,
        Policy::Accept,
    );

    let from_slot = || Rule::new().input_begins(NAME_PREFIX);
    let to_slot = || Rule::new().output_begins(NAME_PREFIX);
    let rules = [
        // Each link carries the one source address of its slot, and no IPv6 at all.
        (
            PINNING,
            from_slot().input_and_source_in(SOURCES.name).accept(),
        ),
        (PINNING, from_slot().drop()),
        // The host is closed, but for answers to what it began.
        (INPUT, from_slot().established().accept()),
        (INPUT, from_slot().reject()),
        (FORWARD, from_slot().output_begins(NAME_PREFIX).drop()),
        (FORWARD, from_slot().destination_in(CLOSED.name).drop()),
        (FORWARD, from_slot().accept()),
        // Only the host itself reaches guests, not who uses it as a router.
        (FORWARD, to_slot().established().accept()),
        (FORWARD, to_slot().drop()),
        (
            OUTWARD,
            Rule::new()
                .output_begins_not(NAME_PREFIX)
                .source_in(GUESTS.name)
                .masquerade(),
        ),
    ];
    let mut batch = Batch::new(TABLE);
    batch.add_table();
    for set in [CLOSED, SOURCES, GUESTS] {
        batch.add_set(&set);
    }
    batch.add_elements(&CLOSED, &closed());
    for chain in [PINNING, INPUT, FORWARD, OUTWARD] {
        batch.add_chain(&chain);
        batch.flush_chain(&chain);
    }
    for (chain, rule) in &rules {
        batch.add_rule(chain, rule);
    }
    batch
}

/// The table of a slot whose guest the host reaches at this address. Safe to commit again
/// at any time. It is closed until an egress policy fills its set, and keeps that.
///
/// The limits stand behind the policy: what is closed is no connection of the host's, whose
/// table of connections they protect. Connections of the host to the guest do not count.
pub(super) fn slot_table(reachable: Ipv4Addr, limits: ConnectionLimits) -> Batch {
    const PINNING: Chain = chain(
        "pinning",
        "filter",
        Hook::Prerouting,
        PRIORITY_RAW,
        Policy::Drop,
    );
    const INWARD: Chain = chain(
        "inward",
        "nat",
        Hook::Prerouting,
        PRIORITY_DSTNAT,
        Policy::Accept,
    );
    const INPUT: Chain = chain(
        "input",
        "filter",
        Hook::Input,
        PRIORITY_FILTER,
        Policy::Drop,
    );
    const FORWARD: Chain = chain(
        "forward",
        "filter",
        Hook::Forward,
        PRIORITY_FILTER,
        Policy::Drop,
    );
    const OUTWARD: Chain = chain(
        "outward",
        "nat",
        Hook::Postrouting,
        PRIORITY_SRCNAT,
        Policy::Accept,
    );

    let outgoing = || Rule::new().input_is(TAP_NAME).output_is(UPLINK_NAME);
    let beginning = || outgoing().destination_in(OPEN.name).begins_connection();
    let incoming = || Rule::new().input_is(UPLINK_NAME).output_is(TAP_NAME);
    let mut rules = vec![
        (
            PINNING,
            Rule::new()
                .input_is(TAP_NAME)
                .source_is(GUEST_ADDRESS)
                .accept(),
        ),
        (
            PINNING,
            Rule::new()
                .input_is(UPLINK_NAME)
                .destination_is(reachable)
                .accept(),
        ),
        (
            INWARD,
            Rule::new()
                .input_is(UPLINK_NAME)
                .translate_destination(GUEST_ADDRESS),
        ),
        (INPUT, Rule::new().input_is(TAP_NAME).reject()),
        // What answers the host has a private destination, so this comes first. Only what
        // came in for the guest has its destination translated.
        (
            FORWARD,
            outgoing().destination_translated().established().accept(),
        ),
        (FORWARD, outgoing().destination_in(CLOSED.name).reject()),
    ];
    // TCP tries again what was dropped, and so becomes as slow as it may be.
    if let Some(rate) = limits.new_per_second {
        rules.push((FORWARD, beginning().rate_over(rate.get()).drop()));
    }
    if let Some(open) = limits.open {
        rules.push((FORWARD, beginning().connections_over(open.get()).reject()));
    }
    rules.extend([
        // Not only the first packet of a connection is asked: a policy can change.
        (FORWARD, outgoing().destination_in(OPEN.name).accept()),
        (FORWARD, outgoing().tcp().ongoing().reset()),
        (FORWARD, outgoing().reject()),
        (FORWARD, incoming().destination_translated().accept()),
        // Errors come from routers in between, and from the host.
        (FORWARD, incoming().related().accept()),
        (FORWARD, incoming().ongoing().source_in(OPEN.name).accept()),
        (
            OUTWARD,
            Rule::new()
                .output_is(UPLINK_NAME)
                .source_is(GUEST_ADDRESS)
                .translate_source(reachable),
        ),
        // The guest sees its gateway as the peer, on whatever host it runs.
        (
            OUTWARD,
            Rule::new()
                .output_is(TAP_NAME)
                .destination_is(GUEST_ADDRESS)
                .translate_source(GATEWAY_ADDRESS),
        ),
    ]);
    let mut batch = Batch::new(TABLE);
    batch.add_table();
    for set in [CLOSED, OPEN] {
        batch.add_set(&set);
    }
    batch.add_elements(&CLOSED, &closed());
    for chain in [PINNING, INWARD, INPUT, FORWARD, OUTWARD] {
        batch.add_chain(&chain);
        batch.flush_chain(&chain);
    }
    for (chain, rule) in &rules {
        batch.add_rule(chain, rule);
    }
    batch
}

/// Exchanges what a slot's egress policy leaves open.
pub(super) fn exchange_open(batch: &mut Batch, policy: &EgressPolicy) {
    batch.flush_set(&OPEN);
    batch.add_elements(&OPEN, &intervals(&policy.open()));
}

/// Opens the host for a slot, however much of it is open already.
pub(super) fn open_slot_again(plan: &AddressPlan, slot: SlotNumber) -> Batch {
    let mut batch = Batch::new(TABLE);
    batch.add_elements(&SOURCES, &[source_of(plan, slot)]);
    batch.add_elements(&GUESTS, &[guest_of(plan, slot)]);
    batch
}

/// Opens the host for a slot. Fails if the slot is open already.
pub(super) fn open_slot(plan: &AddressPlan, slot: SlotNumber) -> Batch {
    let mut batch = Batch::new(TABLE);
    batch.add_new_elements(&SOURCES, &[source_of(plan, slot)]);
    batch.add_new_elements(&GUESTS, &[guest_of(plan, slot)]);
    batch
}

/// Closes the host for a slot that is open.
pub(super) fn close_slot(plan: &AddressPlan, slot: SlotNumber) -> Batch {
    let mut batch = Batch::new(TABLE);
    batch.delete_elements(&SOURCES, &[source_of(plan, slot)]);
    batch.delete_elements(&GUESTS, &[guest_of(plan, slot)]);
    batch
}

/// The slot's element of [`SOURCES`].
fn source_of(plan: &AddressPlan, slot: SlotNumber) -> SetKey {
    SetKey::InterfaceAndAddress(slot.name(), plan.reachable(slot))
}

/// The slot's element of [`GUESTS`].
fn guest_of(plan: &AddressPlan, slot: SlotNumber) -> SetKey {
    SetKey::Address(plan.reachable(slot))
}

/// Whether no sandbox reaches this address, whatever its own policy says.
pub(super) fn is_closed(address: Ipv4Addr) -> bool {
    closed_networks().any(|network| network.contains(&address))
}

fn closed_networks() -> impl Iterator<Item = Ipv4Net> {
    CLOSED_NETWORKS
        .into_iter()
        .map(|(network, prefix)| Ipv4Net::new_assert(network, prefix))
}

fn closed() -> Vec<SetKey> {
    intervals(&AddressRanges::of(&closed_networks().collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_are_open_and_special_ones_closed() {
        for open in [
            "1.1.1.1",
            "8.8.4.4",
            "100.63.255.255",
            "100.128.0.0",
            "168.63.129.17",
            "172.15.0.1",
        ] {
            assert!(!is_closed(open.parse().unwrap()), "{open} is public");
        }
        for closed in [
            "10.11.0.7",
            "10.12.0.14",
            "100.64.0.1",
            "127.0.0.1",
            "168.63.129.16",
            "169.254.169.254",
            "172.31.255.255",
            "192.168.1.1",
            "224.0.0.251",
            "239.255.255.250",
            "255.255.255.255",
        ] {
            let closed: Ipv4Addr = closed.parse().unwrap();
            assert!(is_closed(closed), "{closed} is not public");
        }
    }
}
