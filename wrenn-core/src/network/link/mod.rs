//! Links, addresses, neighbours and routes, by rtnetlink.
//!
//! The messages are those of `netlink-packet-route`; a [`Request`] list goes to the
//! kernel in one datagram.

mod request;

use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkMessage, Stats64};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

pub(super) use request::{Request, VethEnd};

use super::config::MacAddress;
use super::netlink::{NetlinkSocket, errno_of, flags};

/// The name of the veth pair's end in a slot's namespace.
pub(super) const UPLINK_NAME: &str = "uplink";

/// `NETLINK_ROUTE` of `linux/netlink.h`.
const NETLINK_ROUTE: isize = 0;

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

/// A connection to the links of one network namespace.
#[derive(Debug)]
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
        Ok(self.look_up(name)?.as_ref().and_then(link_of))
    }

    /// What a link that must be there has carried, from its own point of view.
    pub(super) fn statistics_of(&mut self, name: &str) -> Result<Stats64, LinkError> {
        self.look_up(name)?
            .into_iter()
            .flat_map(|message| message.attributes)
            .find_map(|attribute| match attribute {
                LinkAttribute::Stats64(statistics) => Some(statistics),
                _ => None,
            })
            .ok_or_else(|| LinkError::Missing {
                name: name.to_owned(),
            })
    }

    fn look_up(&mut self, name: &str) -> Result<Option<LinkMessage>, LinkError> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let message = RouteNetlinkMessage::GetLink(message);
        match self.get(message) {
            Ok(mut answers) => Ok(answers.find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(message),
                _ => None,
            })),
            Err(error) if errno_of(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(source) => Err(LinkError::Refused {
                what: format!("look up link {name}"),
                source,
            }),
        }
    }

    /// The link by which packets to this address leave, if they do.
    pub(super) fn output_to(&mut self, address: Ipv4Addr) -> Result<Option<u32>, LinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(address)));
        match self.get(RouteNetlinkMessage::GetRoute(message)) {
            Ok(mut answers) => Ok(answers
                .find_map(|answer| match answer {
                    RouteNetlinkMessage::NewRoute(message) => route_of(&message),
                    _ => None,
                })
                .and_then(|route| route.output)),
            Err(error)
                if matches!(
                    errno_of(&error),
                    Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES)
                ) =>
            {
                Ok(None)
            }
            Err(source) => Err(LinkError::Refused {
                what: format!("look up the way to {address}"),
                source,
            }),
        }
    }

    /// Asks for one object.
    fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<impl Iterator<Item = RouteNetlinkMessage>> {
        let answers = self
            .socket
            .ask(|sequence| encode(message.clone(), flags::ACK, sequence))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| decode(answer.kind, &answer.payload)))
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
