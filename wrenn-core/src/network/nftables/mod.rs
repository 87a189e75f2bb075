//! A small nf_tables client: what a slot needs of the firewall, spoken to the kernel
//! directly.
//!
//! ```text
//! one datagram = one transaction
//! ┌───────────────┬────────────────┬─────┬────────────────┬─────────────┐
//! │ BATCH_BEGIN   │ message        │  …  │ message + ACK  │ BATCH_END   │
//! └───────────────┴────────────────┴─────┴────────────────┴─────────────┘
//! message = nlmsghdr (type = 10 << 8 | NFT_MSG_*)
//!         + nfgenmsg (family = inet, version = 0, resource = 0)
//!         + attributes, numbers in network byte order, nested as
//!           rule { table, chain, expressions { element { name, data { … } } … } }
//! ```
//!
//! A rule is a list of [`Expression`](expression::Expression)s that work on registers: load a field of the
//! packet, compare, end with a verdict. The kernel commits a transaction whole or not at
//! all, so no packet ever meets half of a policy.
//!
//! The crates that exist were no fit: one is GPL, one wraps a C library, one runs the
//! `nft` program. Everything here follows `linux/netfilter/nf_tables.h` and uses nothing
//! that is newer than Linux 6.1. All objects are of the `inet` family, which sees both
//! IPv4 and IPv6.

mod attributes;
mod batch;
mod expression;
mod listing;
mod rule;
mod set;

pub(super) use attributes::Attributes;
pub(super) use batch::{Batch, Chain, Hook, Policy, put_message};
pub(super) use rule::Rule;
pub(super) use set::{KeyType, Set, SetKey, intervals};

use std::io;

use super::netlink::NetlinkSocket;

/// `NETLINK_NETFILTER` of `linux/netlink.h`.
pub(super) const NETLINK_NETFILTER: isize = 12;
/// `NFNL_SUBSYS_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`.
const FAMILY_INET: u8 = 1;

/// Why the firewall could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum NftError {
    #[error("cannot open a netfilter socket (is the nf_tables module there?)")]
    Open {
        #[source]
        source: io::Error,
    },
    #[error("the kernel refused to {what}")]
    Refused {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the kernel refused a firewall transaction")]
    Commit {
        #[source]
        source: io::Error,
    },
    #[error("cannot list {what}")]
    List {
        what: String,
        #[source]
        source: io::Error,
    },
}

/// A connection to the firewall of one network namespace.
#[derive(Debug)]
pub(super) struct Firewall {
    socket: NetlinkSocket,
}

impl Firewall {
    /// Connects to the firewall of this thread's network namespace.
    pub(super) fn open() -> Result<Self, NftError> {
        let socket =
            NetlinkSocket::open(NETLINK_NETFILTER).map_err(|source| NftError::Open { source })?;
        Ok(Self { socket })
    }

    /// Commits a transaction: all of it, or nothing.
    pub(super) fn commit(&mut self, batch: &Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        let count = batch.message_count();
        let first = self.socket.reserve(count);
        let bytes = batch.encode(first);
        // The last real message, before the end of the batch, is acknowledged.
        self.socket
            .execute_batch(&bytes, first, count, count - 2)
            .map_err(
                |refusal| match refusal.message.and_then(|index| batch.description(index)) {
                    Some(what) => NftError::Refused {
                        what: what.to_owned(),
                        source: refusal.error,
                    },
                    None => NftError::Commit {
                        source: refusal.error,
                    },
                },
            )
    }
}
