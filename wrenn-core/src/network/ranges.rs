//! Sets of IPv4 addresses as sorted ranges.

use ipnet::Ipv4Net;

/// Ranges of addresses, each by its first and last one. In order, and no two touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AddressRanges(Vec<(u32, u32)>);

impl AddressRanges {
    /// What these networks hold together. Host bits that are set in one don't matter.
    pub(super) fn of(networks: &[Ipv4Net]) -> Self {
        let ends = |network: &Ipv4Net| (network.network().to_bits(), network.broadcast().to_bits());
        Self::merged(networks.iter().map(ends).collect())
    }

    fn merged(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Every address that is not in here.
    pub(super) fn complement(&self) -> Self {
        let mut rest = Vec::with_capacity(self.0.len() + 1);
        let mut next = Some(0_u32);
        for (first, last) in &self.0 {
            if let (Some(begin), Some(end)) = (next, first.checked_sub(1))
                && begin <= end
            {
                rest.push((begin, end));
            }
            next = last.checked_add(1);
        }
        rest.extend(next.map(|begin| (begin, u32::MAX)));
        Self(rest)
    }

    /// Every address that is in one of the two.
    pub(super) fn union(mut self, other: &Self) -> Self {
        self.0.extend(&other.0);
        Self::merged(self.0)
    }

    /// First and last address of each range.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn holds(ranges: &AddressRanges, address: u32) -> bool {
        ranges
            .iter()
            .any(|(first, last)| (first..=last).contains(&address))
    }

    fn is_normal(ranges: &AddressRanges) -> bool {
        ranges.iter().all(|(first, last)| first <= last)
            && ranges
                .0
                .windows(2)
                .all(|pair| pair[0].1 < u32::MAX && pair[0].1 + 1 < pair[1].0)
    }

    #[test]
    fn nothing_and_everything_are_each_others_rest() {
        let nothing = AddressRanges::of(&[]);
        let everything = AddressRanges::of(&[Ipv4Net::default()]);
        assert_eq!(nothing.complement(), everything);
        assert_eq!(everything.complement(), nothing);
    }

    fn networks() -> impl Strategy<Value = Vec<Ipv4Net>> {
        prop::collection::vec((any::<u32>(), 0_u8..=32), 0..12).prop_map(|networks| {
            networks
                .into_iter()
                .map(|(bits, prefix)| Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), prefix))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn ranges_hold_what_their_networks_hold(
            some in networks(),
            more in networks(),
            probes in prop::collection::vec(any::<u32>(), 0..40),
        ) {
            let (ranges, others) = (AddressRanges::of(&some), AddressRanges::of(&more));
            let (rest, both) = (ranges.complement(), ranges.clone().union(&others));
            prop_assert!([&ranges, &rest, &both].into_iter().all(is_normal));
            let edges = ranges.iter().flat_map(|(first, last)| {
                [first, first.wrapping_sub(1), last, last.wrapping_add(1)]
            });
            for address in probes.into_iter().chain(edges) {
                let held = |networks: &[Ipv4Net]| {
                    networks.iter().any(|network| network.contains(&Ipv4Addr::from_bits(address)))
                };
                prop_assert_eq!(holds(&ranges, address), held(&some));
                prop_assert_eq!(holds(&rest, address), !held(&some));
                prop_assert_eq!(holds(&both, address), held(&some) || held(&more));
            }
        }
    }
}
