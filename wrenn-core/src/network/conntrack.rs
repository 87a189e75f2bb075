//! Makes the host forget the connections of a slot, by conntrack's netlink.
//!
//! An entry lives on when both ends are gone, up to five days, and lets through what seems to
//! belong to it. It would be open for whoever gets the slot's address next.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{NetlinkSocket, attributes_of, flags};
use super::nftables::{Attributes, NETLINK_NETFILTER, put_message};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `AF_INET`.
const FAMILY_IPV4: u8 = 2;
/// Length of `struct nfgenmsg` before the attributes.
const GENERIC_LEN: usize = 4;
/// `CTA_*` of `linux/netfilter/nfnetlink_conntrack.h`.
const TUPLE_ORIGINAL: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// `CTA_TUPLE_IP`.
const TUPLE_IP: u16 = 1;
/// `CTA_FILTER_ORIG_FLAGS`.
const FILTER_ORIGINAL: u16 = 1;
/// Connections that are deleted by one datagram.
const BATCH: usize = 64;

/// Why connections could not be forgotten.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForgetError {
    #[error("cannot open a netfilter socket")]
    Open(#[source] io::Error),
    #[error("cannot list the connections of {address}")]
    List {
        address: Ipv4Addr,
        #[source]
        source: io::Error,
    },
    #[error("cannot delete connections of {address}")]
    Delete {
        address: Ipv4Addr,
        #[source]
        source: io::Error,
    },
}

/// The end of a connection, as the packet that began it has it.
#[derive(Clone, Copy, Debug)]
enum End {
    Source,
    Destination,
}

impl End {
    /// `CTA_IP_V4_SRC` and `CTA_IP_V4_DST`.
    const fn attribute(self) -> u16 {
        match self {
            Self::Source => 1,
            Self::Destination => 2,
        }
    }

    /// `CTA_FILTER_F_CTA_IP_SRC` and `CTA_FILTER_F_CTA_IP_DST` of the kernel's
    /// `nf_internals.h`.
    const fn filter(self) -> u32 {
        match self {
            Self::Source => 1,
            Self::Destination => 2,
        }
    }
}

/// Forgets all connections that this address began, and those that were begun to it, in the
/// calling thread's network namespace.
pub(super) fn forget(address: Ipv4Addr) -> Result<(), ForgetError> {
    let mut socket = NetlinkSocket::open(NETLINK_NETFILTER).map_err(ForgetError::Open)?;
    for end in [End::Source, End::Destination] {
        let connections = list(&mut socket, address, end)
            .map_err(|source| ForgetError::List { address, source })?;
        for batch in connections.chunks(BATCH) {
            delete(&mut socket, batch).map_err(|source| ForgetError::Delete { address, source })?;
        }
    }
    Ok(())
}

/// The attributes that name each connection.
fn list(socket: &mut NetlinkSocket, address: Ipv4Addr, end: End) -> io::Result<Vec<Vec<u8>>> {
    let addresses = Attributes::new().bytes(end.attribute(), &address.octets());
    let tuple = Attributes::new().nest(TUPLE_IP, &addresses);
    // Unlike other numbers of this protocol, the flags are in host byte order.
    let filter = Attributes::new().bytes(FILTER_ORIGINAL, &end.filter().to_ne_bytes());
    let body = Attributes::new()
        .nest(TUPLE_ORIGINAL, &tuple)
        .nest(FILTER, &filter);
    let answers = socket.dump(|sequence| {
        let mut bytes = Vec::new();
        let flags = flags::REQUEST | flags::DUMP;
        put_message(
            &mut bytes,
            GET,
            flags,
            sequence,
            FAMILY_IPV4,
            0,
            body.as_bytes(),
        );
        bytes
    })?;
    let connections = answers.iter().filter_map(|answer| {
        let attributes = answer.payload.get(GENERIC_LEN..)?;
        // A kernel that knows no such filter lists everything.
        has_end(attributes, address, end).then(|| identity(attributes))
    });
    Ok(connections.collect())
}

fn has_end(attributes: &[u8], address: Ipv4Addr, end: End) -> bool {
    let find = |attributes, wanted| {
        attributes_of(attributes)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    find(attributes, TUPLE_ORIGINAL)
        .and_then(|tuple| find(tuple, TUPLE_IP))
        .and_then(|addresses| find(addresses, end.attribute()))
        == Some(&address.octets())
}

/// The attributes that identify a connection, among those too that began later between the same
/// ends.
fn identity(attributes: &[u8]) -> Vec<u8> {
    let named = attributes_of(attributes)
        .filter(|(kind, _)| [TUPLE_ORIGINAL, ID, ZONE].contains(kind))
        .fold(Attributes::new(), |named, (kind, value)| match kind {
            TUPLE_ORIGINAL => named.nested_bytes(kind, value),
            _ => named.bytes(kind, value),
        });
    named.as_bytes().to_vec()
}

/// Deletes connections. Those that ended meanwhile are fine.
fn delete(socket: &mut NetlinkSocket, connections: &[Vec<u8>]) -> io::Result<()> {
    let first = socket.reserve(connections.len());
    let mut bytes = Vec::new();
    for (sequence, connection) in (first..).zip(connections) {
        let flags = flags::REQUEST | flags::ACK;
        put_message(
            &mut bytes,
            DELETE,
            flags,
            sequence,
            FAMILY_IPV4,
            0,
            connection,
        );
    }
    match socket.execute_each(&bytes, first, connections.len()) {
        Err(refusal) if refusal.error.kind() != io::ErrorKind::NotFound => Err(refusal.error),
        _ => Ok(()),
    }
}
