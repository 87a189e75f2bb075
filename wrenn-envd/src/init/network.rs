//! Brings the network up: one address, one route, by messages to the kernel
//! (rtnetlink(7)) and without any program.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::cmdline::CommandLine;
use super::console::warn;

/// What every sandbox sees, whatever host it is on.
const DEFAULT_ADDRESS: &str = "169.254.0.21/30";
const DEFAULT_GATEWAY: &str = "169.254.0.22";
const DEFAULT_NAME_SERVERS: [&str; 2] = ["1.1.1.1", "8.8.8.8"];

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// A network card whose driver is still looking at it.
const CARD_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
}

impl Plan {
    /// `None` if there shall be no network, or what is asked for can't be understood.
    fn read(line: &CommandLine) -> Option<Self> {
        let address = line.value("wrenn.ip").unwrap_or(DEFAULT_ADDRESS);
        if address == "none" {
            return None;
        }
        let parsed = address.split_once('/').and_then(|(address, prefix)| {
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            Some((address.parse().ok()?, prefix))
        });
        let Some((address, prefix)) = parsed else {
            warn(&format!(
                "wrenn.ip={address} is not an address with a prefix"
            ));
            return None;
        };
        let gateway = match line.value("wrenn.gateway") {
            Some("none") => None,
            Some(gateway) => match gateway.parse() {
                Ok(gateway) => Some(gateway),
                Err(_) => {
                    warn(&format!("wrenn.gateway={gateway} is not an address"));
                    None
                }
            },
            None if line.value("wrenn.ip").is_none() => DEFAULT_GATEWAY.parse().ok(),
            None => None,
        };
        Some(Self {
            address,
            prefix,
            gateway,
        })
    }
}

/// Configures what is there. A card that is not there yet is waited for on a thread, so
/// that the boot goes on.
pub(super) fn bring_up(line: &CommandLine) {
    let link = match Netlink::open() {
        Ok(link) => link,
        Err(error) => return warn(&format!("cannot talk to the kernel's network: {error}")),
    };
    if let Err(error) = link.set_up(1) {
        warn(&format!("cannot bring up lo: {error}"));
    }
    let Some(plan) = Plan::read(line) else {
        return;
    };
    match card() {
        Some(card) => configure(&link, card, plan),
        None => {
            thread::spawn(move || {
                let start = Instant::now();
                loop {
                    thread::sleep(Duration::from_millis(5));
                    if let Some(card) = card() {
                        return configure(&link, card, plan);
                    }
                    if start.elapsed() > CARD_DEADLINE {
                        return warn("no network card has shown up");
                    }
                }
            });
        }
    }
}

fn configure(link: &Netlink, card: u32, plan: Plan) {
    let configured = link
        .add_address(card, plan.address, plan.prefix)
        .and_then(|()| link.set_up(card))
        .and_then(|()| match plan.gateway {
            Some(gateway) => link.add_default_route(card, gateway),
            None => Ok(()),
        });
    if let Err(error) = configured {
        warn(&format!("cannot configure the network: {error}"));
    }
}

/// The index of eth0, or of the first Ethernet card with another name.
fn card() -> Option<u32> {
    let index = |name: &str| {
        fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    index("eth0").or_else(|| {
        let cards = fs::read_dir("/sys/class/net").ok()?;
        cards
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| {
                // ARPHRD_ETHER, and made by hardware rather than by software.
                let base = format!("/sys/class/net/{name}");
                fs::read_to_string(format!("{base}/type")).is_ok_and(|kind| kind.trim() == "1")
                    && fs::exists(format!("{base}/device")).unwrap_or(false)
            })
            .filter_map(|name| index(&name))
            .min()
    })
}

/// Name servers, if asked for or if there are none.
pub(super) fn write_name_servers(line: &CommandLine) {
    let text = match line.value("wrenn.dns") {
        Some(servers) => resolv_conf(servers.split(',')),
        None if fs::metadata(RESOLV_CONF).is_ok_and(|there| there.len() > 0) => return,
        None => resolv_conf(DEFAULT_NAME_SERVERS),
    };
    if let Err(error) = fs::write(RESOLV_CONF, text) {
        warn(&format!("cannot write {RESOLV_CONF}: {error}"));
    }
}

fn resolv_conf<'a>(servers: impl IntoIterator<Item = &'a str>) -> String {
    servers
        .into_iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect()
}

/// A route socket and the four messages that we need; linux/rtnetlink.h.
struct Netlink(OwnedFd);

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
/// Request, with acknowledgement.
const CHANGE: u16 = 0x1 | 0x4;
/// The same, to create or replace. An existing link can't be replaced.
const CREATE: u16 = CHANGE | 0x100 | 0x400;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

impl Netlink {
    fn open() -> io::Result<Self> {
        Ok(Self(rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is number 0, the default.
            None,
        )?))
    }

    /// `struct ifinfomsg`: family, padding, type, index, flags, changed flags.
    fn set_up(&self, index: u32) -> io::Result<()> {
        let mut body = vec![0, 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        self.request(RTM_NEWLINK, CHANGE, &body)
    }

    /// `struct ifaddrmsg`: family, prefix, flags, scope, index.
    fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut body = vec![AF_INET, prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, address.octets());
        attribute(&mut body, IFA_ADDRESS, address.octets());
        self.request(RTM_NEWADDR, CREATE, &body)
    }

    /// `struct rtmsg`: family, lengths of destination and source, TOS, table (main),
    /// protocol (boot), scope (universe), type (unicast), flags.
    fn add_default_route(&self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut body = vec![AF_INET, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        attribute(&mut body, RTA_GATEWAY, gateway.octets());
        attribute(&mut body, RTA_OIF, index.to_ne_bytes());
        self.request(RTM_NEWROUTE, CREATE, &body)
    }

    /// Sends one message and reads its acknowledgement.
    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.0, &message(kind, flags, body), SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (count, _) = rustix::net::recv(&self.0, &mut answer, RecvFlags::empty())?;
        acknowledgement(&answer[..count])
    }
}

/// `struct nlmsghdr`: length, type, flags, sequence, port; then the body.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    // Bodies are ours and have a few dozen bytes.
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// `struct rtattr` with four bytes of value, which need no padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    body.extend(8u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// `struct nlmsgerr`: a negative error number, 0 for success. That something is there
/// already is success, too.
fn acknowledgement(answer: &[u8]) -> io::Result<()> {
    let field = |at: usize| answer.get(at..at + 4)?.try_into().ok();
    let kind = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_ne_bytes);
    let (Some(NLMSG_ERROR), Some(code)) = (kind, field(16).map(i32::from_ne_bytes)) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not an acknowledgement",
        ));
    };
    match -code {
        0 | libc::EEXIST => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Option<Plan> {
        Plan::read(&CommandLine::parse(line))
    }

    #[test]
    fn plans_what_the_command_line_says() {
        let default = plan("").unwrap();
        assert_eq!(
            (default.address.octets(), default.prefix),
            ([169, 254, 0, 21], 30)
        );
        assert_eq!(default.gateway, Some(Ipv4Addr::new(169, 254, 0, 22)));
        assert_eq!(plan("wrenn.ip=none"), None);
        let own = plan("wrenn.ip=10.0.2.15/24 wrenn.gateway=10.0.2.2").unwrap();
        assert_eq!(
            (own.prefix, own.gateway),
            (24, Some(Ipv4Addr::new(10, 0, 2, 2)))
        );
        assert_eq!(plan("wrenn.ip=10.0.2.15/24").unwrap().gateway, None);
    }

    #[test]
    fn writes_messages_as_the_kernel_reads_them() {
        let message = message(RTM_NEWLINK, CHANGE, &[1, 2, 3, 4]);
        assert_eq!(message[..4], 20u32.to_ne_bytes());
        assert_eq!(message[4..8], [16, 0, 5, 0]);
        assert_eq!(message[16..], [1, 2, 3, 4]);
    }

    #[test]
    fn understands_acknowledgements() {
        let answer = |code: i32| {
            let mut answer = vec![36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            answer.extend(code.to_ne_bytes());
            answer
        };
        assert!(acknowledgement(&answer(0)).is_ok());
        assert!(acknowledgement(&answer(-libc::EEXIST)).is_ok());
        let error = acknowledgement(&answer(-libc::EPERM)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(acknowledgement(&[0; 10]).is_err());
    }
}
