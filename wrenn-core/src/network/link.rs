//! Links, addresses, neighbours and routes, by rtnetlink.
//!
//! The messages are those of `netlink-packet-route`; a [`Request`] list goes to the
//! kernel in one datagram.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::Ipv4Net;
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::config::MacAddress;
use super::netlink::{NetlinkSocket, errno_of, flags};

/// The name of the veth pair's end in a slot's namespace.
pub(super) const UPLINK_NAME: &str = "uplink";

/// `NETLINK_ROUTE` of `linux/netlink.h`.
const NETLINK_ROUTE: isize = 0;

/// The kernel keeps this much of a link's alias (`IFALIASZ`, with the zero byte).
const ALIAS_LENGTH: usize = 255;

/// Why links could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum LinkError {
    #[error("cannot open a route socket")]
    Open {
        #[source]
        source: io::Error,
    },
    #[error("cannot {what}")]
    Refused {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("link {name} is not there")]
    Missing { name: String },
}

impl LinkError {
    /// Whether what was to be made is there already.
    pub(super) fn already_there(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if errno_of(source) == Some(Errno::EEXIST))
    }
}

/// One change, with the words for the case that it is refused.
pub(super) struct Request {
    what: String,
    flags: u16,
    message: RouteNetlinkMessage,
}

/// What a link is, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Option<MacAddress>,
}

/// A route that leads somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Ipv4Net,
    /// Index of the link by which it leads there.
    pub(super) output: Option<u32>,
}

/// One end of a veth pair.
pub(super) struct VethEnd<'a> {
    pub(super) name: &'a str,
    pub(super) mac: MacAddress,
}

/// A connection to the links of one network namespace.
pub(super) struct Links {
    socket: NetlinkSocket,
}

impl Links {
    /// Connects to the links of this thread's network namespace.
    pub(super) fn open() -> Result<Self, LinkError> {
        let socket =
            NetlinkSocket::open(NETLINK_ROUTE).map_err(|source| LinkError::Open { source })?;
        Ok(Self { socket })
    }

    /// Makes all changes, in order, in one exchange with the kernel. The first refusal is
    /// returned; what came behind it may have been done.
    pub(super) fn execute(&mut self, requests: Vec<Request>) -> Result<(), LinkError> {
        let count = requests.len();
        let first = self.socket.reserve(count);
        let mut bytes = Vec::new();
        let mut words = Vec::with_capacity(count);
        for (sequence, request) in (first..).zip(requests) {
            bytes.extend(encode(
                request.message,
                request.flags | flags::ACK,
                sequence,
            ));
            words.push(request.what);
        }
        self.socket
            .execute_each(&bytes, first, count)
            .map_err(|refusal| LinkError::Refused {
                what: match refusal.message {
                    Some(index) => words.swap_remove(index),
                    None => words.join(", "),
                },
                source: refusal.error,
            })
    }

    /// The link of this name, if there is one.
    pub(super) fn find(&mut self, name: &str) -> Result<Option<Link>, LinkError> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let message = RouteNetlinkMessage::GetLink(message);
        let answers = self
            .socket
            .ask(|sequence| encode(message.clone(), flags::ACK, sequence));
        match answers {
            Ok(answers) => {
                Ok(answers
                    .iter()
                    .find_map(|answer| match decode(answer.kind, &answer.payload)? {
                        RouteNetlinkMessage::NewLink(message) => link_of(&message),
                        _ => None,
                    }))
            }
            Err(error) if errno_of(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(source) => Err(LinkError::Refused {
                what: format!("look up link {name}"),
                source,
            }),
        }
    }

    /// The index of a link that must be there.
    pub(super) fn index_of(&mut self, name: &str) -> Result<u32, LinkError> {
        match self.find(name)? {
            Some(link) => Ok(link.index),
            None => Err(LinkError::Missing {
                name: name.to_owned(),
            }),
        }
    }

    /// All links of the namespace.
    pub(super) fn list(&mut self) -> Result<Vec<Link>, LinkError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let messages = self.dump(message, "list the links")?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(message) => link_of(&message),
                _ => None,
            })
            .collect())
    }

    /// The IPv4 routes of all tables that lead somewhere, without the default routes.
    pub(super) fn routes(&mut self) -> Result<Vec<Route>, LinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let messages = self.dump(RouteNetlinkMessage::GetRoute(message), "list the routes")?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(message) => route_of(&message),
                _ => None,
            })
            .collect())
    }

    fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
        let answers = self
            .socket
            .dump(|sequence| encode(message.clone(), flags::DUMP, sequence))
            .map_err(|source| LinkError::Refused {
                what: what.to_owned(),
                source,
            })?;
        Ok(answers
            .iter()
            .filter_map(|answer| decode(answer.kind, &answer.payload))
            .collect())
    }
}

impl Request {
    /// Makes a veth pair whose second end lies in another namespace.
    pub(super) fn add_veth(here: &VethEnd<'_>, there: &VethEnd<'_>, other: BorrowedFd<'_>) -> Self {
        let mut peer = named(there);
        peer.attributes
            .push(LinkAttribute::NetNsFd(other.as_raw_fd()));
        let mut message = named(here);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        Self {
            what: format!("make the veth pair {} - {}", here.name, there.name),
            flags: flags::CREATE | flags::EXCLUSIVE,
            message: RouteNetlinkMessage::NewLink(message),
        }
    }

    /// Takes a link up, and gives it a hardware address and an alias where wanted.
    pub(super) fn set_up(index: u32, mac: Option<MacAddress>, alias: Option<&str>) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        if let Some(MacAddress(bytes)) = mac {
            message
                .attributes
                .push(LinkAttribute::Address(bytes.to_vec()));
        }
        if let Some(alias) = alias {
            let alias: String = alias
                .chars()
                .take(ALIAS_LENGTH / char::MAX.len_utf8())
                .collect();
            message.attributes.push(LinkAttribute::IfAlias(alias));
        }
        Self {
            what: format!("take link number {index} up"),
            flags: 0,
            message: RouteNetlinkMessage::SetLink(message),
        }
    }

    /// Removes a link, and with a veth its other end.
    pub(super) fn delete_link(link: &Link) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        Self {
            what: format!("remove link {}", link.name),
            flags: 0,
            message: RouteNetlinkMessage::DelLink(message),
        }
    }

    /// Gives a link an address.
    pub(super) fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> Self {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message
            .attributes
            .push(AddressAttribute::Local(IpAddr::V4(address)));
        message
            .attributes
            .push(AddressAttribute::Address(IpAddr::V4(address)));
        Self {
            what: format!("add address {address}/{prefix}"),
            flags: flags::CREATE | flags::EXCLUSIVE,
            message: RouteNetlinkMessage::NewAddress(message),
        }
    }

    /// Says which hardware address a neighbour has, for good, so that nobody needs to
    /// ask (or may answer otherwise).
    pub(super) fn add_neighbour(index: u32, address: Ipv4Addr, mac: MacAddress) -> Self {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(
                address,
            )));
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        Self {
            what: format!("add neighbour {address}"),
            flags: flags::CREATE,
            message: RouteNetlinkMessage::NewNeighbour(message),
        }
    }

    /// Adds a route by way of a gateway.
    pub(super) fn add_route(destination: Ipv4Net, gateway: Ipv4Addr, index: u32) -> Self {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        if destination.prefix_len() > 0 {
            let network = RouteAddress::Inet(destination.network());
            message
                .attributes
                .push(RouteAttribute::Destination(network));
        }
        message
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        message.attributes.push(RouteAttribute::Oif(index));
        Self {
            what: format!("add a route to {destination} by way of {gateway}"),
            flags: flags::CREATE | flags::EXCLUSIVE,
            message: RouteNetlinkMessage::NewRoute(message),
        }
    }
}

fn named(end: &VethEnd<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(end.name.to_owned()));
    message
        .attributes
        .push(LinkAttribute::Address(end.mac.0.to_vec()));
    message
}

fn encode(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags::REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    bytes
}

fn decode(kind: u16, payload: &[u8]) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    RouteNetlinkMessage::deserialize(&header, payload).ok()
}

fn link_of(message: &LinkMessage) -> Option<Link> {
    let name = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })?;
    let mac = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => Some(MacAddress(bytes.as_slice().try_into().ok()?)),
            _ => None,
        });
    Some(Link {
        index: message.header.index,
        name,
        mac,
    })
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let leads_nowhere = [
        RouteType::BlackHole,
        RouteType::Unreachable,
        RouteType::Prohibit,
        RouteType::Throw,
    ];
    if leads_nowhere.contains(&message.header.kind) {
        return None;
    }
    let network = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(network)) => Some(*network),
            _ => None,
        })?;
    let destination = Ipv4Net::new(network, message.header.destination_prefix_length).ok()?;
    let output = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    (destination.prefix_len() > 0).then_some(Route {
        destination,
        output,
    })
}
