//! The changes that are made to links, one message each.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::Ipv4Net;
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

use super::Link;
use crate::network::config::MacAddress;
use crate::network::netlink::flags;

/// The kernel keeps this much of a link's alias (`IFALIASZ`, with the zero byte).
const ALIAS_LENGTH: usize = 255;

/// One change, with the words for the case that it is refused.
pub(in crate::network) struct Request {
    pub(super) what: String,
    pub(super) flags: u16,
    pub(super) message: RouteNetlinkMessage,
}

/// One end of a veth pair.
pub(in crate::network) struct VethEnd<'a> {
    pub(in crate::network) name: &'a str,
    pub(in crate::network) mac: MacAddress,
}

impl Request {
    /// Makes a veth pair whose second end lies in another namespace.
    pub(in crate::network) fn add_veth(
        here: &VethEnd<'_>,
        there: &VethEnd<'_>,
        other: BorrowedFd<'_>,
    ) -> Self {
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
    pub(in crate::network) fn set_up(
        index: u32,
        mac: Option<MacAddress>,
        alias: Option<&str>,
    ) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        if let Some(MacAddress(bytes)) = mac {
            message
                .attributes
                .push(LinkAttribute::Address(bytes.to_vec()));
        }
        message.attributes.extend(alias.map(alias_of));
        Self {
            what: format!("take link number {index} up"),
            flags: 0,
            message: RouteNetlinkMessage::SetLink(message),
        }
    }

    /// Gives the link of this name another alias.
    pub(in crate::network) fn set_alias(name: &str, alias: &str) -> Self {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(alias_of(alias));
        Self {
            what: format!("write {alias} beside link {name}"),
            flags: 0,
            message: RouteNetlinkMessage::SetLink(message),
        }
    }

    /// Removes a link, and with a veth its other end.
    pub(in crate::network) fn delete_link(link: &Link) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        Self {
            what: format!("remove link {}", link.name),
            flags: 0,
            message: RouteNetlinkMessage::DelLink(message),
        }
    }

    /// Gives a link an address.
    pub(in crate::network) fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> Self {
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
    pub(in crate::network) fn add_neighbour(
        index: u32,
        address: Ipv4Addr,
        mac: MacAddress,
    ) -> Self {
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
    pub(in crate::network) fn add_route(
        destination: Ipv4Net,
        gateway: Ipv4Addr,
        index: u32,
    ) -> Self {
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

fn alias_of(alias: &str) -> LinkAttribute {
    let longest = ALIAS_LENGTH / char::MAX.len_utf8();
    LinkAttribute::IfAlias(alias.chars().take(longest).collect())
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
