//! Where one sandbox may connect to, within what all of them may.
//!
//! The lists and the default are worked out to one set of ranges, which the slot's own
//! table holds. So a change is one transaction that exchanges the set's elements, a packet
//! meets the old policy or the new one, and a set that lost its elements is closed. The
//! set is asked about every packet in both directions: a connection that was open before
//! ends when its peer is denied (TCP hears a reset), and what the host itself asks of the
//! guest goes on under any policy.
//!
//! It is a policy for what runs in the guest. A VMM that was taken over meets the host's
//! table, which knows the closed networks only.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::namespace::{self, NamespaceError};
use super::nftables::{Batch, Firewall, NftError};
use super::policy;
use super::ranges::AddressRanges;

/// How many entries both lists may have together.
pub const MAX_EGRESS_ENTRIES: usize = 1_000;

/// What becomes of destinations that are in neither list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressDefault {
    /// The public internet is open.
    #[default]
    AllowInternet,
    /// Everything is refused, name servers too unless they are in the allow list.
    DenyAll,
}

/// Where a sandbox may connect to. An address is decided by the first line that matches:
///
/// | | line | verdict |
/// |---|---|---|
/// | 1 | in a network that is closed to every sandbox | refused |
/// | 2 | in the allow list | open |
/// | 3 | in the deny list | refused |
/// | 4 | the default | open or refused |
///
/// Lists have no order within themselves and prefix lengths don't matter. That is how
/// existing clients mean their lists: "deny everything, allow these". Private networks and
/// whatever else is not on the public internet stay closed whatever line 2 says.
///
/// ```
/// use wrenn_core::network::{EgressDefault, EgressPolicy};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let only_these = vec!["1.1.1.1/32".parse()?, "151.101.0.0/16".parse()?];
/// let policy = EgressPolicy::new(EgressDefault::DenyAll, only_these, vec![])?;
/// assert!(!policy.permits("8.8.8.8".parse()?));
/// assert!(policy.permits("1.1.1.1".parse()?));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPolicy {
    default: EgressDefault,
    allow: Vec<Ipv4Net>,
    deny: Vec<Ipv4Net>,
}

/// Why lists are no policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum EgressPolicyError {
    #[error(
        "{entries} entries in the allow and deny lists are more than {MAX_EGRESS_ENTRIES}; put neighbouring addresses into networks"
    )]
    TooMany { entries: usize },
}

/// Why a slot's egress policy could not be changed. The old one stays.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum SetEgressError {
    #[error("cannot enter the slot's network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("cannot exchange the slot's egress rules")]
    Firewall(#[from] NftError),
    #[error("cannot run a thread in the slot's namespace")]
    Thread {
        #[source]
        source: std::io::Error,
    },
}

impl EgressPolicy {
    /// A policy of these lists.
    ///
    /// # Errors
    /// When the lists have more than [`MAX_EGRESS_ENTRIES`] entries together.
    pub fn new(
        default: EgressDefault,
        allow: Vec<Ipv4Net>,
        deny: Vec<Ipv4Net>,
    ) -> Result<Self, EgressPolicyError> {
        let entries = allow.len() + deny.len();
        if entries > MAX_EGRESS_ENTRIES {
            return Err(EgressPolicyError::TooMany { entries });
        }
        Ok(Self {
            default,
            allow,
            deny,
        })
    }

    /// What becomes of destinations that are in neither list.
    pub const fn default_verdict(&self) -> EgressDefault {
        self.default
    }

    /// What is open in any case.
    pub fn allow_list(&self) -> &[Ipv4Net] {
        &self.allow
    }

    /// What is refused unless it is in the allow list.
    pub fn deny_list(&self) -> &[Ipv4Net] {
        &self.deny
    }

    /// Whether a sandbox under this policy may connect to this address.
    pub fn permits(&self, address: Ipv4Addr) -> bool {
        let within = |list: &[Ipv4Net]| list.iter().any(|network| network.contains(&address));
        !policy::is_closed(address)
            && (within(&self.allow)
                || (self.default == EgressDefault::AllowInternet && !within(&self.deny)))
    }

    /// What is open, but for the networks that are closed to all.
    pub(super) fn open(&self) -> AddressRanges {
        let allowed = AddressRanges::of(&self.allow);
        match self.default {
            EgressDefault::AllowInternet => {
                AddressRanges::of(&self.deny).complement().union(&allowed)
            }
            EgressDefault::DenyAll => allowed,
        }
    }
}

/// Gives the slot whose namespace this is another policy. Moves the calling thread there.
/// The connection comes back too, since closing it takes the kernel 20 ms.
pub(super) fn set(
    namespace: &OwnedFd,
    policy: &EgressPolicy,
) -> (Result<(), SetEgressError>, Option<Firewall>) {
    let opened = namespace::enter(namespace)
        .map_err(SetEgressError::from)
        .and_then(|()| Ok(Firewall::open()?));
    match opened {
        Ok(mut firewall) => {
            let mut batch = Batch::new(policy::TABLE);
            policy::exchange_open(&mut batch, policy);
            (firewall.commit(&batch).map_err(Into::into), Some(firewall))
        }
        Err(error) => (Err(error), None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(networks: &[&str]) -> Vec<Ipv4Net> {
        networks.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn allowed_comes_before_denied_and_both_before_the_default() {
        let policy = EgressPolicy::new(
            EgressDefault::AllowInternet,
            list(&["8.8.4.0/24", "10.0.0.0/8"]),
            list(&["8.0.0.0/8", "8.8.4.4/32"]),
        )
        .unwrap();
        for (address, wanted) in [
            ("8.8.4.4", true),
            ("8.8.8.8", false),
            ("1.1.1.1", true),
            ("10.0.0.9", false),
        ] {
            assert_eq!(
                policy.permits(address.parse().unwrap()),
                wanted,
                "{address}"
            );
        }
    }

    #[test]
    fn too_many_entries_are_refused() {
        let entries = |count| vec![Ipv4Net::default(); count];
        let default = EgressDefault::DenyAll;
        assert!(EgressPolicy::new(default, entries(400), entries(600)).is_ok());
        let error = EgressPolicy::new(default, entries(401), entries(600)).unwrap_err();
        assert!(error.to_string().starts_with("1001 entries"), "{error}");
    }

    fn networks() -> impl Strategy<Value = Vec<Ipv4Net>> {
        prop::collection::vec((any::<u32>(), 0_u8..=32), 0..6).prop_map(|networks| {
            networks
                .into_iter()
                .map(|(bits, prefix)| Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), prefix))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn the_set_holds_what_the_policy_permits(
            deny_all in any::<bool>(),
            allow in networks(),
            deny in networks(),
            probes in prop::collection::vec(any::<u32>(), 0..40),
        ) {
            let default = if deny_all { EgressDefault::DenyAll } else { EgressDefault::AllowInternet };
            let policy = EgressPolicy::new(default, allow, deny).unwrap();
            let edges = policy.allow.iter().chain(&policy.deny).flat_map(|network| {
                let (first, last) = (network.network().to_bits(), network.broadcast().to_bits());
                [first, first.wrapping_sub(1), last, last.wrapping_add(1)]
            });
            let open = policy.open();
            for address in probes.into_iter().chain(edges) {
                let in_set = open.iter().any(|(first, last)| (first..=last).contains(&address));
                let address = Ipv4Addr::from_bits(address);
                prop_assert_eq!(
                    in_set && !policy::is_closed(address), policy.permits(address), "{}", address
                );
            }
        }
    }
}
