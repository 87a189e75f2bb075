//! Rules in the words in which people write them.

use std::net::Ipv4Addr;

use super::attributes::Attributes;
use super::expression::{
    Answer, Comparison, ConnectionKey, Expression, MetaKey, Register, Translation, Verdict,
};
use super::set::padded_name;

/// `NFPROTO_IPV4`.
pub(super) const PROTOCOL_IPV4: u8 = 2;

/// `IPPROTO_TCP`.
const TRANSPORT_TCP: u8 = 6;

/// Where the addresses lie in an IPv4 header, and how long they are.
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const ADDRESS_LENGTH: u32 = 4;

/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)` and `NF_CT_STATE_BIT(IP_CT_RELATED)`.
const ESTABLISHED: u32 = 0x2;
const RELATED: u32 = 0x4;
/// `IPS_CONFIRMED`: a packet of the connection was let through.
const CONFIRMED: u32 = 1 << 3;
/// `IPS_DST_NAT`.
const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// A rule under construction: conditions first, then what to do.
///
/// ```text
/// Rule::new().input_is("tap0").destination_in("closed").reject()
///     = iifname "tap0" ip daddr @closed reject
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::network) struct Rule {
    expressions: Vec<Expression>,
}

impl Rule {
    pub(in crate::network) fn new() -> Self {
        Self::default()
    }

    /// The packet came by the interface of exactly this name.
    pub(in crate::network) fn input_is(self, name: &str) -> Self {
        self.interface(
            MetaKey::InputName,
            Comparison::Equal,
            padded_name(name).to_vec(),
        )
    }

    /// The packet leaves by the interface of exactly this name.
    pub(in crate::network) fn output_is(self, name: &str) -> Self {
        self.interface(
            MetaKey::OutputName,
            Comparison::Equal,
            padded_name(name).to_vec(),
        )
    }

    /// The packet came by an interface whose name begins so.
    pub(in crate::network) fn input_begins(self, prefix: &str) -> Self {
        self.interface(
            MetaKey::InputName,
            Comparison::Equal,
            prefix.as_bytes().to_vec(),
        )
    }

    /// The packet leaves by an interface whose name begins so.
    pub(in crate::network) fn output_begins(self, prefix: &str) -> Self {
        self.interface(
            MetaKey::OutputName,
            Comparison::Equal,
            prefix.as_bytes().to_vec(),
        )
    }

    /// The packet leaves by an interface whose name begins in another way.
    pub(in crate::network) fn output_begins_not(self, prefix: &str) -> Self {
        self.interface(
            MetaKey::OutputName,
            Comparison::NotEqual,
            prefix.as_bytes().to_vec(),
        )
    }

    fn interface(self, key: MetaKey, comparison: Comparison, with: Vec<u8>) -> Self {
        self.push(Expression::Meta {
            key,
            into: Register::FIRST,
        })
        .push(Expression::Compare {
            register: Register::FIRST,
            comparison,
            with,
        })
    }

    /// The packet is IPv4. Needed before any look at its header.
    fn ipv4(self) -> Self {
        self.push(Expression::Meta {
            key: MetaKey::Protocol,
            into: Register::FIRST,
        })
        .push(Expression::Compare {
            register: Register::FIRST,
            comparison: Comparison::Equal,
            with: vec![PROTOCOL_IPV4],
        })
    }

    fn load_address(self, offset: u32, into: Register) -> Self {
        self.push(Expression::NetworkHeader {
            offset,
            length: ADDRESS_LENGTH,
            into,
        })
    }

    fn address_is(self, offset: u32, address: Ipv4Addr) -> Self {
        self.ipv4()
            .load_address(offset, Register::FIRST)
            .push(Expression::Compare {
                register: Register::FIRST,
                comparison: Comparison::Equal,
                with: address.octets().to_vec(),
            })
    }

    /// The packet carries TCP.
    pub(in crate::network) fn tcp(self) -> Self {
        self.push(Expression::Meta {
            key: MetaKey::Transport,
            into: Register::FIRST,
        })
        .push(Expression::Compare {
            register: Register::FIRST,
            comparison: Comparison::Equal,
            with: vec![TRANSPORT_TCP],
        })
    }

    /// The packet is IPv4 and comes from this address.
    pub(in crate::network) fn source_is(self, address: Ipv4Addr) -> Self {
        self.address_is(SOURCE_OFFSET, address)
    }

    /// The packet is IPv4 and goes to this address.
    pub(in crate::network) fn destination_is(self, address: Ipv4Addr) -> Self {
        self.address_is(DESTINATION_OFFSET, address)
    }

    /// The packet is IPv4 and comes from an address in the set.
    pub(in crate::network) fn source_in(self, set: &str) -> Self {
        self.ipv4()
            .load_address(SOURCE_OFFSET, Register::FIRST)
            .lookup(set)
    }

    /// The packet is IPv4 and goes to an address in the set.
    pub(in crate::network) fn destination_in(self, set: &str) -> Self {
        self.ipv4()
            .load_address(DESTINATION_OFFSET, Register::FIRST)
            .lookup(set)
    }

    /// The packet is IPv4, and the pair of the interface by which it came and its source
    /// address is in the set.
    pub(in crate::network) fn input_and_source_in(self, set: &str) -> Self {
        self.ipv4()
            .push(Expression::Meta {
                key: MetaKey::InputName,
                into: Register::FIRST,
            })
            .load_address(SOURCE_OFFSET, Register::BEHIND_FIRST)
            .lookup(set)
    }

    fn lookup(self, set: &str) -> Self {
        self.push(Expression::Lookup {
            register: Register::FIRST,
            set: set.to_owned(),
            inverted: false,
        })
    }

    /// The packet belongs to a connection that was let through before, or is an error
    /// message about one.
    pub(in crate::network) fn established(self) -> Self {
        self.connection_has(ConnectionKey::State, ESTABLISHED | RELATED)
    }

    /// The packet belongs to a connection that was let through before.
    pub(in crate::network) fn ongoing(self) -> Self {
        self.connection_has(ConnectionKey::State, ESTABLISHED)
    }

    /// The packet is an error message about a connection that was let through before.
    pub(in crate::network) fn related(self) -> Self {
        self.connection_has(ConnectionKey::State, RELATED)
    }

    /// The packet is the first one of its connection. A state of `new` says less: of UDP that is
    /// not answered every packet is.
    pub(in crate::network) fn begins_connection(self) -> Self {
        self.connection(ConnectionKey::Status, CONFIRMED, Comparison::Equal)
    }

    /// More connections than this came to this rule and have not ended. To be asked of packets
    /// that [begin one](Self::begins_connection): the kernel looks through its list.
    pub(in crate::network) fn connections_over(self, count: u32) -> Self {
        self.push(Expression::ConnectionsOver(count))
    }

    /// Packets come to this rule faster than this, after a burst of as many as in two seconds.
    pub(in crate::network) fn rate_over(self, per_second: u32) -> Self {
        self.push(Expression::RateOver {
            per_second,
            burst: per_second.saturating_mul(2),
        })
    }

    /// The destination of the packet's connection has been translated.
    pub(in crate::network) fn destination_translated(self) -> Self {
        self.connection_has(ConnectionKey::Status, DESTINATION_TRANSLATED)
    }

    fn connection_has(self, key: ConnectionKey, any_of: u32) -> Self {
        self.connection(key, any_of, Comparison::NotEqual)
    }

    /// Compares these bits of something about the connection with none.
    fn connection(self, key: ConnectionKey, bits: u32, with_none: Comparison) -> Self {
        self.push(Expression::Connection {
            key,
            into: Register::FIRST,
        })
        .push(Expression::Mask {
            register: Register::FIRST,
            mask: bits.to_ne_bytes().to_vec(),
        })
        .push(Expression::Compare {
            register: Register::FIRST,
            comparison: with_none,
            with: vec![0; 4],
        })
    }

    /// The packet is let through by this chain.
    pub(in crate::network) fn accept(self) -> Self {
        self.push(Expression::Verdict(Verdict::Accept))
    }

    /// The packet is counted and vanishes.
    pub(in crate::network) fn drop(self) -> Self {
        self.push(Expression::Counter)
            .push(Expression::Verdict(Verdict::Drop))
    }

    /// The packet is counted, and its sender is told that it may not.
    pub(in crate::network) fn reject(self) -> Self {
        self.push(Expression::Counter)
            .push(Expression::Reject(Answer::Prohibited))
    }

    /// The packet is counted, and its sender is told that its connection is over. The rule
    /// must match [`tcp`](Self::tcp) only.
    pub(in crate::network) fn reset(self) -> Self {
        self.push(Expression::Counter)
            .push(Expression::Reject(Answer::Reset))
    }

    /// The connection goes to this address instead.
    pub(in crate::network) fn translate_destination(self, address: Ipv4Addr) -> Self {
        self.translate(Translation::Destination, address)
    }

    /// The connection comes from this address instead.
    pub(in crate::network) fn translate_source(self, address: Ipv4Addr) -> Self {
        self.translate(Translation::Source, address)
    }

    fn translate(self, what: Translation, address: Ipv4Addr) -> Self {
        self.push(Expression::Load {
            value: address.octets().to_vec(),
            into: Register::FIRST,
        })
        .push(Expression::Translate {
            what,
            address: Register::FIRST,
        })
    }

    /// The connection comes from the address of the interface by which it leaves.
    pub(in crate::network) fn masquerade(self) -> Self {
        self.push(Expression::Masquerade)
    }

    fn push(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    /// `NFTA_RULE_EXPRESSIONS`: a list of `NFTA_LIST_ELEM`.
    pub(super) fn encode(&self) -> Attributes {
        self.expressions
            .iter()
            .fold(Attributes::new(), |list, expression| {
                list.nest(1, &expression.encode())
            })
    }
}
