//! Sets and their elements.

use std::net::Ipv4Addr;

use super::attributes::Attributes;
use crate::network::ranges::AddressRanges;

/// `IFNAMSIZ`: the length of an interface name in a key, zero-padded.
pub(super) const INTERFACE_NAME_LENGTH: usize = 16;

/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// What the keys of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum KeyType {
    Address,
    /// An interface name followed by an address.
    InterfaceAndAddress,
}

impl KeyType {
    /// The number by which the `nft` program knows how to print keys. The kernel doesn't
    /// care. A pair of types is the first's number shifted by six bits, plus the second.
    pub(super) const fn number(self) -> u32 {
        const ADDRESS: u32 = 7;
        const INTERFACE_NAME: u32 = 41;
        match self {
            Self::Address => ADDRESS,
            Self::InterfaceAndAddress => INTERFACE_NAME << 6 | ADDRESS,
        }
    }

    pub(super) const fn length(self) -> u32 {
        match self {
            Self::Address => 4,
            Self::InterfaceAndAddress => 20,
        }
    }
}

/// A set to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) struct Set {
    pub(in crate::network) name: &'static str,
    pub(in crate::network) key: KeyType,
    /// Whether elements are ranges rather than single keys.
    pub(in crate::network) interval: bool,
}

/// The key of an element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::network) enum SetKey {
    Address(Ipv4Addr),
    InterfaceAndAddress(String, Ipv4Addr),
    /// The first address behind a range.
    EndOfRange(Ipv4Addr),
}

impl SetKey {
    /// `NFTA_SET_ELEM_KEY`, and `NFTA_SET_ELEM_FLAGS` for the end of a range.
    pub(super) fn encode(&self) -> Attributes {
        let key = |bytes: &[u8]| Attributes::new().nest(1, &Attributes::new().bytes(1, bytes));
        match self {
            Self::Address(address) => key(&address.octets()),
            Self::InterfaceAndAddress(name, address) => {
                let mut bytes = padded_name(name).to_vec();
                bytes.extend(address.octets());
                key(&bytes)
            }
            Self::EndOfRange(address) => key(&address.octets()).number(3, INTERVAL_END),
        }
    }

    /// Reads a key as a listing has it.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
            return Some(Self::Address(octets.into()));
        }
        let (name, octets) = bytes.split_at_checked(INTERFACE_NAME_LENGTH)?;
        let octets = <[u8; 4]>::try_from(octets).ok()?;
        let name = std::ffi::CStr::from_bytes_until_nul(name)
            .ok()?
            .to_str()
            .ok()?;
        Some(Self::InterfaceAndAddress(name.to_owned(), octets.into()))
    }
}

/// An interface name as the kernel compares it: cut at 15 bytes, padded with zeros.
pub(super) fn padded_name(name: &str) -> [u8; INTERFACE_NAME_LENGTH] {
    let mut padded = [0; INTERFACE_NAME_LENGTH];
    for (to, from) in padded[..INTERFACE_NAME_LENGTH - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = from;
    }
    padded
}

/// The elements of an interval set that holds these ranges: of each its first address and
/// the first behind it. The kernel refuses ranges that share an end, and these do not.
pub(in crate::network) fn intervals(ranges: &AddressRanges) -> Vec<SetKey> {
    let mut keys = Vec::new();
    for (first, last) in ranges.iter() {
        keys.push(SetKey::Address(Ipv4Addr::from_bits(first)));
        // A range up to the very last address is left open.
        if let Some(behind) = last.checked_add(1) {
            keys.push(SetKey::EndOfRange(Ipv4Addr::from_bits(behind)));
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    /// What the kernel does with an interval set: the last key at or below the address
    /// decides.
    fn holds(keys: &[SetKey], address: Ipv4Addr) -> bool {
        let mut inside = false;
        for key in keys {
            match key {
                SetKey::Address(first) if *first <= address => inside = true,
                SetKey::EndOfRange(behind) if *behind <= address => inside = false,
                _ => {}
            }
        }
        inside
    }

    #[test]
    fn neighbours_become_one_range() {
        let networks = ["224.0.0.0/4", "240.0.0.0/4", "10.0.0.0/8"].map(|net| net.parse().unwrap());
        assert_eq!(
            intervals(&AddressRanges::of(&networks)),
            [
                SetKey::Address(Ipv4Addr::new(10, 0, 0, 0)),
                SetKey::EndOfRange(Ipv4Addr::new(11, 0, 0, 0)),
                SetKey::Address(Ipv4Addr::new(224, 0, 0, 0)),
            ]
        );
    }

    #[test]
    fn keys_have_the_bytes_that_the_kernel_compares() {
        let key = SetKey::InterfaceAndAddress("wrenn-7".into(), Ipv4Addr::new(10, 11, 0, 7));
        let wanted = [
            28, 0, 1, 0x80, // NFTA_SET_ELEM_KEY, nested
            24, 0, 1, 0, // NFTA_DATA_VALUE
            b'w', b'r', b'e', b'n', b'n', b'-', b'7', 0, 0, 0, 0, 0, 0, 0, 0, 0, //
            10, 11, 0, 7,
        ];
        assert_eq!(key.encode().as_bytes(), wanted);
        assert_eq!(SetKey::decode(&wanted[8..]), Some(key));
        assert_eq!(
            SetKey::EndOfRange(Ipv4Addr::new(11, 0, 0, 0))
                .encode()
                .as_bytes(),
            [
                12, 0, 1, 0x80, 8, 0, 1, 0, 11, 0, 0, 0, 8, 0, 3, 0, 0, 0, 0, 1
            ]
        );
    }

    proptest! {
        #[test]
        fn a_range_set_holds_what_its_networks_hold(
            networks in prop::collection::vec((any::<u32>(), 0_u8..=32), 0..12),
            probes in prop::collection::vec(any::<u32>(), 0..40),
        ) {
            let networks: Vec<Ipv4Net> = networks
                .into_iter()
                .map(|(bits, prefix)| {
                    Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), prefix).trunc()
                })
                .collect();
            let keys = intervals(&AddressRanges::of(&networks));
            let edges = networks.iter().flat_map(|network| {
                let (first, last) = (network.network().to_bits(), network.broadcast().to_bits());
                [first, first.wrapping_sub(1), last, last.wrapping_add(1)]
            });
            for address in probes.into_iter().chain(edges).map(Ipv4Addr::from_bits) {
                let wanted = networks.iter().any(|network| network.contains(&address));
                prop_assert_eq!(holds(&keys, address), wanted, "{}", address);
            }
        }
    }
}
