//! Which addresses and names belong to which slot.
//!
//! Everything that a slot owns on the host follows from its number, so any process can
//! tell from a name or an address whose it is:
//!
//! | thing | of slot *n* | of slot 7 |
//! |---|---|---|
//! | namespace and host end of the veth pair | `wrenn-<n>` | `wrenn-7` |
//! | address at which the host reaches the guest | reachable network + *n* | `10.11.0.7` |
//! | host end of the veth pair | links network + 2*n* | `10.12.0.14/31` |
//! | far end of the veth pair | links network + 2*n* + 1 | `10.12.0.15/31` |
//!
//! Slot 0 does not exist: its reachable address would be the network's own.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// What every name of ours on the host begins with.
pub(super) const NAME_PREFIX: &str = "wrenn-";

/// The highest slot number, whatever the networks would hold.
pub const MAX_SLOTS: u16 = 32_767;

/// The number of a slot, from 1 to [`MAX_SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotNumber(u16);

impl SlotNumber {
    /// `None` for 0 and for what is above [`MAX_SLOTS`].
    pub const fn new(number: u16) -> Option<Self> {
        if number == 0 || number > MAX_SLOTS {
            None
        } else {
            Some(Self(number))
        }
    }

    /// The bare number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The name of the slot's namespace and of its veth's host end.
    pub fn name(self) -> String {
        format!("{NAME_PREFIX}{}", self.0)
    }

    /// The slot to which a namespace or link name belongs. Only the spelling that
    /// [`name`](Self::name) produces is taken: `wrenn-07` is nobody's.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::from_decimal(name.strip_prefix(NAME_PREFIX)?)
    }

    /// Reads the number as it appears in names, without sign or leading zero.
    pub(super) fn from_decimal(digits: &str) -> Option<Self> {
        let number = Self::new(digits.parse().ok()?)?;
        (number.to_string() == digits).then_some(number)
    }
}

impl fmt::Display for SlotNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The two networks from which slots take their host-side addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPlan {
    reachable: Ipv4Net,
    links: Ipv4Net,
}

impl AddressPlan {
    /// Both networks must have been checked by [`NetworkConfig`](super::NetworkConfig).
    pub(super) const fn new(reachable: Ipv4Net, links: Ipv4Net) -> Self {
        Self { reachable, links }
    }

    /// The network of the addresses at which the host reaches guests.
    pub const fn reachable_network(&self) -> Ipv4Net {
        self.reachable
    }

    /// The network of the veth pairs.
    pub const fn links_network(&self) -> Ipv4Net {
        self.links
    }

    /// How many slots the networks hold. Slot numbers run from 1 to this.
    pub fn capacity(&self) -> u16 {
        // The last reachable address is the network's broadcast address.
        let reachable = addresses(self.reachable).saturating_sub(2);
        let links = (addresses(self.links) / 2).saturating_sub(1);
        u16::try_from(reachable.min(links))
            .unwrap_or(MAX_SLOTS)
            .min(MAX_SLOTS)
    }

    /// The address at which the host reaches this slot's guest.
    pub fn reachable(&self, slot: SlotNumber) -> Ipv4Addr {
        offset(self.reachable, u32::from(slot.0))
    }

    /// The address of the host's end of the veth pair.
    pub fn link_host(&self, slot: SlotNumber) -> Ipv4Addr {
        offset(self.links, 2 * u32::from(slot.0))
    }

    /// The address of the veth pair's end in the slot's namespace.
    pub fn link_slot(&self, slot: SlotNumber) -> Ipv4Addr {
        offset(self.links, 2 * u32::from(slot.0) + 1)
    }

    /// The slot that has this address in its veth pair or as its reachable address.
    pub fn slot_of(&self, address: Ipv4Addr) -> Option<SlotNumber> {
        let number = if self.reachable.contains(&address) {
            distance(self.reachable, address)
        } else if self.links.contains(&address) {
            distance(self.links, address) / 2
        } else {
            return None;
        };
        SlotNumber::new(u16::try_from(number).ok()?).filter(|slot| slot.0 <= self.capacity())
    }
}

fn addresses(network: Ipv4Net) -> u64 {
    1 << (32 - network.prefix_len())
}

fn offset(network: Ipv4Net, by: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(network.network().to_bits().wrapping_add(by))
}

fn distance(network: Ipv4Net, address: Ipv4Addr) -> u32 {
    address.to_bits() - network.network().to_bits()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn plan(reachable: &str, links: &str) -> AddressPlan {
        AddressPlan::new(reachable.parse().unwrap(), links.parse().unwrap())
    }

    #[test]
    fn every_slot_has_addresses_of_its_own() {
        let plan = plan("10.11.0.0/16", "10.12.0.0/16");
        assert_eq!(plan.capacity(), MAX_SLOTS);
        let mut seen = HashSet::new();
        for number in 1..=plan.capacity() {
            let slot = SlotNumber::new(number).unwrap();
            for address in [
                plan.reachable(slot),
                plan.link_host(slot),
                plan.link_slot(slot),
            ] {
                assert!(seen.insert(address), "{address} of slot {slot} is taken");
                assert_eq!(plan.slot_of(address), Some(slot));
            }
        }
    }

    #[test]
    fn the_documented_example_holds() {
        let plan = plan("10.11.0.0/16", "10.12.0.0/16");
        let slot = SlotNumber::new(7).unwrap();
        assert_eq!(slot.name(), "wrenn-7");
        assert_eq!(plan.reachable(slot), Ipv4Addr::new(10, 11, 0, 7));
        assert_eq!(plan.link_host(slot), Ipv4Addr::new(10, 12, 0, 14));
        assert_eq!(plan.link_slot(slot), Ipv4Addr::new(10, 12, 0, 15));
    }

    #[test]
    fn addresses_of_no_slot_have_no_slot() {
        let plan = plan("10.11.0.0/16", "10.12.0.0/16");
        for address in [
            "10.11.0.0",
            "10.12.0.0",
            "10.12.0.1",
            "10.13.0.7",
            "10.11.255.255",
        ] {
            assert_eq!(plan.slot_of(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn only_the_exact_spelling_is_a_name() {
        for name in [
            "wrenn-",
            "wrenn-0",
            "wrenn-07",
            "wrenn-+7",
            "wrenn-32768",
            "wrenn-7x",
            "eth0",
        ] {
            assert_eq!(SlotNumber::from_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_pair_of_networks_maps_back(
            reachable_prefix in 16_u8..=29,
            links_prefix in 16_u8..=28,
            number in 1_u16..=MAX_SLOTS,
        ) {
            let plan = plan(
                &format!("172.16.0.0/{reachable_prefix}"),
                &format!("192.168.0.0/{links_prefix}"),
            );
            let slot = SlotNumber::new(1 + (number - 1) % plan.capacity()).unwrap();
            prop_assert!(plan.reachable_network().contains(&plan.reachable(slot)));
            prop_assert!(plan.links_network().contains(&plan.link_slot(slot)));
            prop_assert_eq!(plan.slot_of(plan.reachable(slot)), Some(slot));
            prop_assert_eq!(plan.slot_of(plan.link_host(slot)), Some(slot));
            prop_assert_eq!(plan.slot_of(plan.link_slot(slot)), Some(slot));
            // Both ends of a /31 must be in the same /31.
            prop_assert_eq!(plan.link_host(slot).to_bits() | 1, plan.link_slot(slot).to_bits());
            prop_assert_eq!(SlotNumber::from_name(&slot.name()), Some(slot));
        }
    }
}
