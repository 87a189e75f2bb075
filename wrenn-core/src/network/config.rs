//! What can be chosen about a host's network, checked before anything is made.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use ipnet::Ipv4Net;

use super::plan::AddressPlan;

/// The address that every guest has.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The gateway that every guest sees: the TAP inside its slot's namespace.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// The prefix length of the guest's network.
pub const GUEST_PREFIX: u8 = 30;
/// The MAC address of every guest. Locally administered; the last four bytes spell the
/// address. It is the same everywhere, so a snapshot resumes in any slot.
pub const GUEST_MAC: MacAddress = MacAddress([0x06, 0x00, 169, 254, 0, 21]);
/// The MAC address of every gateway, which a resumed guest has in its neighbour table.
pub const GATEWAY_MAC: MacAddress = MacAddress([0x06, 0x00, 169, 254, 0, 22]);
/// The name of the TAP in every slot's namespace.
pub const TAP_NAME: &str = "tap0";

const GUEST_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 20), GUEST_PREFIX);

/// Networks from which host-side addresses may be taken: what no sandbox may reach, so
/// that slot addresses are closed to every guest without a rule of their own.
const PRIVATE: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// A hardware address, printed as `06:00:a9:fe:00:15`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl std::fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// How many connections to the outside each sandbox may have. All sandboxes of a host share its
/// table of connections; when that is full, the host itself loses packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// At once. A further one is refused. No limit if unset.
    pub open: Option<NonZeroU32>,
    /// Begun in a second, after a burst of twice as many. Further ones have to wait. No limit if
    /// unset.
    pub new_per_second: Option<NonZeroU32>,
}

impl Default for ConnectionLimits {
    /// 4096 at once, 500 a second.
    fn default() -> Self {
        Self {
            open: NonZeroU32::new(4096),
            new_per_second: NonZeroU32::new(500),
        }
    }
}

/// A host's network settings, valid by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    plan: AddressPlan,
    limits: ConnectionLimits,
}

/// Why networks cannot be used for slots.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum ConfigError {
    #[error("{network} has host bits set; write {}", network.trunc())]
    HostBits { network: Ipv4Net },
    #[error("{network} holds no slot; use a prefix length of at most {longest}")]
    TooSmall { network: Ipv4Net, longest: u8 },
    #[error(
        "{network} is not private; take it from 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12 or 192.168.0.0/16"
    )]
    NotPrivate { network: Ipv4Net },
    #[error("{first} and {second} overlap")]
    Overlap { first: Ipv4Net, second: Ipv4Net },
}

impl NetworkConfig {
    /// `reachable` is where the host reaches guests (one address a slot), `links` is for
    /// the veth pairs (two addresses a slot).
    ///
    /// # Errors
    /// When a network is not private, too small for one slot, not aligned to its prefix,
    /// or overlaps the other.
    pub fn new(reachable: Ipv4Net, links: Ipv4Net) -> Result<Self, ConfigError> {
        for (network, longest) in [(reachable, 30), (links, 30)] {
            if network.trunc() != network {
                return Err(ConfigError::HostBits { network });
            }
            if network.prefix_len() > longest {
                return Err(ConfigError::TooSmall { network, longest });
            }
            if overlap(network, GUEST_NETWORK) {
                return Err(ConfigError::Overlap {
                    first: network,
                    second: GUEST_NETWORK,
                });
            }
            if !PRIVATE.iter().any(|private| private.contains(&network)) {
                return Err(ConfigError::NotPrivate { network });
            }
        }
        if overlap(reachable, links) {
            return Err(ConfigError::Overlap {
                first: reachable,
                second: links,
            });
        }
        Ok(Self {
            plan: AddressPlan::new(reachable, links),
            limits: ConnectionLimits::default(),
        })
    }

    /// The same with other limits of connections.
    #[must_use]
    pub const fn with_connection_limits(mut self, limits: ConnectionLimits) -> Self {
        self.limits = limits;
        self
    }

    /// How many connections each sandbox may have.
    pub const fn connection_limits(&self) -> ConnectionLimits {
        self.limits
    }

    /// Which addresses belong to which slot under these settings.
    pub const fn plan(&self) -> AddressPlan {
        self.plan
    }
}

impl Default for NetworkConfig {
    /// `10.11.0.0/16` to reach guests, `10.12.0.0/16` for the veth pairs.
    fn default() -> Self {
        Self {
            plan: AddressPlan::new(
                Ipv4Net::new_assert(Ipv4Addr::new(10, 11, 0, 0), 16),
                Ipv4Net::new_assert(Ipv4Addr::new(10, 12, 0, 0), 16),
            ),
            limits: ConnectionLimits::default(),
        }
    }
}

/// Whether two networks share an address.
pub(super) fn overlap(first: Ipv4Net, second: Ipv4Net) -> bool {
    first.contains(&second) || second.contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(reachable: &str, links: &str) -> Result<NetworkConfig, ConfigError> {
        NetworkConfig::new(reachable.parse().unwrap(), links.parse().unwrap())
    }

    #[test]
    fn the_default_is_what_the_constructor_accepts() {
        assert_eq!(
            config("10.11.0.0/16", "10.12.0.0/16").unwrap(),
            NetworkConfig::default()
        );
    }

    #[test]
    fn bad_networks_are_refused_with_the_reason() {
        for (reachable, links, wanted) in [
            (
                "10.11.0.1/16",
                "10.12.0.0/16",
                "10.11.0.1/16 has host bits set; write 10.11.0.0/16",
            ),
            ("10.11.0.0/31", "10.12.0.0/16", "10.11.0.0/31 holds no slot"),
            ("10.11.0.0/16", "8.8.8.0/24", "8.8.8.0/24 is not private"),
            (
                "10.0.0.0/8",
                "10.12.0.0/16",
                "10.0.0.0/8 and 10.12.0.0/16 overlap",
            ),
            (
                "10.12.3.0/24",
                "10.12.0.0/16",
                "10.12.3.0/24 and 10.12.0.0/16 overlap",
            ),
            (
                "169.254.0.0/16",
                "10.12.0.0/16",
                "169.254.0.0/16 and 169.254.0.20/30 overlap",
            ),
            (
                "0.0.0.0/0",
                "10.12.0.0/16",
                "0.0.0.0/0 and 169.254.0.20/30 overlap",
            ),
        ] {
            let error = config(reachable, links).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
    }

    #[test]
    fn the_smallest_networks_hold_one_slot() {
        assert_eq!(
            config("10.11.0.0/30", "10.12.0.0/30")
                .unwrap()
                .plan()
                .capacity(),
            1
        );
    }
}
