//! A transaction under construction.

use super::attributes::Attributes;
use super::expression::Verdict;
use super::rule::Rule;
use super::set::{Set, SetKey};
use super::{FAMILY_INET, SUBSYSTEM};
use crate::network::netlink::{HEADER_LEN, flags};

/// Length of `struct nfgenmsg`: family, version, resource.
const GENERIC_LEN: usize = 4;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `NFT_MSG_*`.
pub(super) mod message {
    pub(in super::super) const NEW_TABLE: u16 = 0;
    pub(in super::super) const NEW_CHAIN: u16 = 3;
    pub(in super::super) const NEW_RULE: u16 = 6;
    pub(in super::super) const DELETE_RULE: u16 = 8;
    pub(in super::super) const NEW_SET: u16 = 9;
    pub(in super::super) const NEW_ELEMENT: u16 = 12;
    pub(in super::super) const GET_ELEMENT: u16 = 13;
    pub(in super::super) const DELETE_ELEMENT: u16 = 14;
}

/// Where in a packet's way a chain sits. Numbers as in `enum nf_inet_hooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum Hook {
    Prerouting,
    Input,
    Forward,
    Postrouting,
}

/// What a chain does with a packet that no rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum Policy {
    Accept,
    Drop,
}

/// A base chain: one that the kernel calls at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) struct Chain {
    pub(in crate::network) name: &'static str,
    /// `filter`, or `nat`, which is asked about the first packet of a connection only.
    pub(in crate::network) kind: &'static str,
    pub(in crate::network) hook: Hook,
    /// Chains of one hook are called from the lowest to the highest.
    pub(in crate::network) priority: i32,
    pub(in crate::network) policy: Policy,
}

#[derive(Debug)]
struct Message {
    kind: u16,
    flags: u16,
    attributes: Attributes,
    /// What it does, for an error's text.
    what: String,
}

/// Changes to one table that are committed together.
#[derive(Debug)]
pub(in crate::network) struct Batch {
    table: &'static str,
    messages: Vec<Message>,
    sets: u32,
}

impl Batch {
    /// A transaction on the table of this name. The table need not exist yet.
    pub(in crate::network) fn new(table: &'static str) -> Self {
        Self {
            table,
            messages: Vec::new(),
            sets: 0,
        }
    }

    /// Makes the table unless it is there.
    pub(in crate::network) fn add_table(&mut self) {
        // NFTA_TABLE_NAME, NFTA_TABLE_FLAGS
        let attributes = Attributes::new().string(1, self.table).number(2, 0);
        self.push(
            message::NEW_TABLE,
            flags::CREATE,
            attributes,
            "make the table".into(),
        );
    }

    /// Makes a chain unless it is there.
    pub(in crate::network) fn add_chain(&mut self, chain: &Chain) {
        let hook = match chain.hook {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Postrouting => 4,
        };
        let policy = match chain.policy {
            Policy::Drop => Verdict::Drop,
            Policy::Accept => Verdict::Accept,
        };
        let hook = Attributes::new()
            .number(1, hook)
            .number(2, chain.priority.cast_unsigned());
        let attributes = Attributes::new()
            .string(1, self.table) // NFTA_CHAIN_TABLE
            .string(3, chain.name)
            .nest(4, &hook)
            .number(5, policy.code())
            .string(7, chain.kind);
        let what = format!("make the {} chain {}", chain.kind, chain.name);
        self.push(message::NEW_CHAIN, flags::CREATE, attributes, what);
    }

    /// Removes all rules of a chain.
    pub(in crate::network) fn flush_chain(&mut self, chain: &Chain) {
        let attributes = Attributes::new()
            .string(1, self.table)
            .string(2, chain.name);
        let what = format!("remove the rules of chain {}", chain.name);
        self.push(message::DELETE_RULE, 0, attributes, what);
    }

    /// Adds a rule at the end of a chain.
    pub(in crate::network) fn add_rule(&mut self, chain: &Chain, rule: &Rule) {
        let attributes = Attributes::new()
            .string(1, self.table) // NFTA_RULE_TABLE
            .string(2, chain.name)
            .nest(4, &rule.encode());
        let what = format!("add a rule to chain {}", chain.name);
        self.push(
            message::NEW_RULE,
            flags::CREATE | flags::APPEND,
            attributes,
            what,
        );
    }

    /// Makes a set unless it is there.
    pub(in crate::network) fn add_set(&mut self, set: &Set) {
        const INTERVAL: u32 = 0x4;
        // The kernel wants a number that is unique within the transaction.
        self.sets += 1;
        let attributes = Attributes::new()
            .string(1, self.table) // NFTA_SET_TABLE
            .string(2, set.name)
            .number(3, if set.interval { INTERVAL } else { 0 })
            .number(4, set.key.number())
            .number(5, set.key.length())
            .number(10, self.sets); // NFTA_SET_ID
        self.push(
            message::NEW_SET,
            flags::CREATE,
            attributes,
            format!("make set {}", set.name),
        );
    }

    /// Adds elements that may be there already.
    pub(in crate::network) fn add_elements(&mut self, set: &Set, keys: &[SetKey]) {
        self.elements(
            message::NEW_ELEMENT,
            flags::CREATE,
            set,
            keys,
            "add elements to",
        );
    }

    /// Adds elements; the transaction fails if one of them is there already.
    pub(in crate::network) fn add_new_elements(&mut self, set: &Set, keys: &[SetKey]) {
        let flags = flags::CREATE | flags::EXCLUSIVE;
        self.elements(
            message::NEW_ELEMENT,
            flags,
            set,
            keys,
            "add new elements to",
        );
    }

    /// Removes elements; the transaction fails if one of them is not there.
    pub(in crate::network) fn delete_elements(&mut self, set: &Set, keys: &[SetKey]) {
        self.elements(
            message::DELETE_ELEMENT,
            0,
            set,
            keys,
            "remove elements from",
        );
    }

    /// Removes all elements. Together with new ones in the same transaction they are
    /// exchanged, and no packet finds the set empty.
    pub(in crate::network) fn flush_set(&mut self, set: &Set) {
        let attributes = Attributes::new().string(1, self.table).string(2, set.name);
        let what = format!("remove the elements of set {}", set.name);
        self.push(message::DELETE_ELEMENT, 0, attributes, what);
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &Set, keys: &[SetKey], verb: &str) {
        // An attribute's length is 16 bits, so long lists are split.
        const PER_MESSAGE: usize = 512;
        for some in keys.chunks(PER_MESSAGE) {
            let list = some
                .iter()
                .fold(Attributes::new(), |list, key| list.nest(1, &key.encode()));
            let attributes = Attributes::new()
                .string(1, self.table) // NFTA_SET_ELEM_LIST_TABLE
                .string(2, set.name)
                .nest(3, &list);
            self.push(kind, flags, attributes, format!("{verb} set {}", set.name));
        }
    }

    fn push(&mut self, kind: u16, flags: u16, attributes: Attributes, what: String) {
        self.messages.push(Message {
            kind,
            flags,
            attributes,
            what,
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Messages with the two that frame the transaction.
    pub(super) fn message_count(&self) -> usize {
        self.messages.len() + 2
    }

    /// What the message at this place of the encoded transaction does.
    pub(super) fn description(&self, index: usize) -> Option<&str> {
        Some(&self.messages.get(index.checked_sub(1)?)?.what)
    }

    /// The transaction as one datagram, its messages numbered from `first`.
    pub(super) fn encode(&self, first: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4096);
        let mut sequence = first;
        let mut put = |kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]| {
            put_message(&mut bytes, kind, flags, sequence, family, resource, body);
            sequence = sequence.wrapping_add(1);
        };
        put(BATCH_BEGIN, flags::REQUEST, 0, SUBSYSTEM, &[]);
        for (index, message) in self.messages.iter().enumerate() {
            let acknowledge = if index + 1 == self.messages.len() {
                flags::ACK
            } else {
                0
            };
            put(
                SUBSYSTEM << 8 | message.kind,
                flags::REQUEST | message.flags | acknowledge,
                FAMILY_INET,
                0,
                message.attributes.as_bytes(),
            );
        }
        put(BATCH_END, flags::REQUEST, 0, SUBSYSTEM, &[]);
        bytes
    }
}

/// Appends one message: `nlmsghdr`, `nfgenmsg`, attributes.
pub(in crate::network) fn put_message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    body: &[u8],
) {
    let length = u32::try_from(HEADER_LEN + GENERIC_LEN + body.len())
        .expect("a message holds a few attributes of 64 KiB at most");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]); // the port is the kernel's to fill in
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    bytes.extend_from_slice(body);
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
