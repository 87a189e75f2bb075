//! The expressions of which our rules consist.

use super::attributes::Attributes;

/// A 16-byte register, or the first of the 4-byte registers that lie in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) struct Register(u32);

impl Register {
    /// `NFT_REG_1`: bytes 0 to 15 of the register file.
    pub(in crate::network) const FIRST: Self = Self(1);
    /// `NFT_REG32_04`: the four bytes right behind [`FIRST`](Self::FIRST), so that both
    /// together are the key of a two-part set.
    pub(in crate::network) const BEHIND_FIRST: Self = Self(12);
}

/// What becomes of a packet. Numbers as in `linux/netfilter.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum Verdict {
    Drop,
    Accept,
}

impl Verdict {
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
        }
    }
}

/// `NFT_META_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum MetaKey {
    /// Name of the interface by which the packet came, 16 bytes.
    InputName,
    /// Name of the interface by which the packet leaves, 16 bytes.
    OutputName,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    Protocol,
    /// `IPPROTO_*` of what the packet carries, one byte.
    Transport,
}

/// `NFT_CT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum ConnectionKey {
    /// Bit set of new, established, related…
    State,
    /// Bit set of what conntrack did to the connection.
    Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum Comparison {
    Equal,
    NotEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum Translation {
    Source,
    Destination,
}

/// What the sender of a rejected packet hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum Answer {
    /// ICMP "administratively prohibited".
    Prohibited,
    /// The end of its connection. For TCP only.
    Reset,
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) enum Expression {
    /// Loads something about the packet that isn't in it.
    Meta { key: MetaKey, into: Register },
    /// Loads bytes of the network header.
    NetworkHeader {
        offset: u32,
        length: u32,
        into: Register,
    },
    /// Loads something about the connection, a number in host byte order.
    Connection { key: ConnectionKey, into: Register },
    /// `register = register & mask`.
    Mask { register: Register, mask: Vec<u8> },
    /// Goes on with the rule if the comparison holds.
    Compare {
        register: Register,
        comparison: Comparison,
        with: Vec<u8>,
    },
    /// Goes on with the rule if the register is in the set (or is not).
    Lookup {
        register: Register,
        set: String,
        inverted: bool,
    },
    /// Loads a constant.
    Load { value: Vec<u8>, into: Register },
    /// Counts packets and bytes that came this far.
    Counter,
    /// Goes on with the rule if more connections than this came here and have not ended.
    ConnectionsOver(u32),
    /// Goes on with the rule if packets come here faster than this, after a burst of so many.
    RateOver { per_second: u32, burst: u32 },
    /// Ends the rule.
    Verdict(Verdict),
    /// Answers and drops.
    Reject(Answer),
    /// Gives the connection another address, an IPv4 one in a register.
    Translate {
        what: Translation,
        address: Register,
    },
    /// Gives the connection the address of the interface by which it leaves.
    Masquerade,
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::NetworkHeader { .. } => "payload",
            Self::Connection { .. } => "ct",
            Self::Mask { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Load { .. } | Self::Verdict(_) => "immediate",
            Self::Counter => "counter",
            Self::ConnectionsOver(_) => "connlimit",
            Self::RateOver { .. } => "limit",
            Self::Reject(_) => "reject",
            Self::Translate { .. } => "nat",
            Self::Masquerade => "masq",
        }
    }

    /// `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA` with the attributes of its kind.
    pub(super) fn encode(&self) -> Attributes {
        let data = match self {
            Self::Meta { key, into } => {
                let key = match key {
                    MetaKey::InputName => 6,
                    MetaKey::OutputName => 7,
                    MetaKey::Protocol => 15,
                    MetaKey::Transport => 16,
                };
                // NFTA_META_DREG, NFTA_META_KEY
                Attributes::new().number(1, into.0).number(2, key)
            }
            Self::NetworkHeader {
                offset,
                length,
                into,
            } => Attributes::new()
                .number(1, into.0) // NFTA_PAYLOAD_DREG
                .number(2, 1) // NFTA_PAYLOAD_BASE: NFT_PAYLOAD_NETWORK_HEADER
                .number(3, *offset)
                .number(4, *length),
            Self::Connection { key, into } => {
                let key = match key {
                    ConnectionKey::State => 0,
                    ConnectionKey::Status => 2,
                };
                // NFTA_CT_DREG, NFTA_CT_KEY
                Attributes::new().number(1, into.0).number(2, key)
            }
            Self::Mask { register, mask } => Attributes::new()
                .number(1, register.0) // NFTA_BITWISE_SREG
                .number(2, register.0) // NFTA_BITWISE_DREG
                .number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX))
                .nest(4, &value(mask))
                .nest(5, &value(&vec![0; mask.len()])), // NFTA_BITWISE_XOR
            Self::Compare {
                register,
                comparison,
                with,
            } => {
                let operation = match comparison {
                    Comparison::Equal => 0,
                    Comparison::NotEqual => 1,
                };
                Attributes::new()
                    .number(1, register.0)
                    .number(2, operation)
                    .nest(3, &value(with))
            }
            Self::Lookup {
                register,
                set,
                inverted,
            } => Attributes::new()
                .string(1, set)
                .number(2, register.0)
                .number(5, u32::from(*inverted)), // NFTA_LOOKUP_FLAGS: NFT_LOOKUP_F_INV
            Self::Load {
                value: constant,
                into,
            } => Attributes::new()
                .number(1, into.0)
                .nest(2, &value(constant)),
            Self::Counter | Self::Masquerade => Attributes::new(),
            // NFTA_CONNLIMIT_COUNT, NFTA_CONNLIMIT_FLAGS: NFT_CONNLIMIT_F_INV
            Self::ConnectionsOver(count) => Attributes::new().number(1, *count).number(2, 1),
            Self::RateOver { per_second, burst } => Attributes::new()
                .long_number(1, u64::from(*per_second)) // NFTA_LIMIT_RATE
                .long_number(2, 1) // NFTA_LIMIT_UNIT: a second
                .number(3, *burst)
                .number(4, 0) // NFTA_LIMIT_TYPE: NFT_LIMIT_PKTS
                .number(5, 1), // NFTA_LIMIT_FLAGS: NFT_LIMIT_F_INV
            Self::Verdict(verdict) => {
                // NFTA_DATA_VERDICT { NFTA_VERDICT_CODE } into NFT_REG_VERDICT
                let code = Attributes::new().number(1, verdict.code());
                Attributes::new()
                    .number(1, 0)
                    .nest(2, &Attributes::new().nest(2, &code))
            }
            // NFT_REJECT_ICMPX_UNREACH with NFT_REJECT_ICMPX_ADMIN_PROHIBITED
            Self::Reject(Answer::Prohibited) => Attributes::new().number(1, 2).byte(2, 3),
            // NFT_REJECT_TCP_RST
            Self::Reject(Answer::Reset) => Attributes::new().number(1, 1),
            Self::Translate { what, address } => {
                let kind = match what {
                    Translation::Source => 0,
                    Translation::Destination => 1,
                };
                Attributes::new()
                    .number(1, kind)
                    .number(2, u32::from(super::rule::PROTOCOL_IPV4)) // NFTA_NAT_FAMILY
                    .number(3, address.0) // NFTA_NAT_REG_ADDR_MIN
            }
        };
        Attributes::new().string(1, self.name()).nest(2, &data)
    }
}

/// `NFTA_DATA_VALUE`.
fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}
