//! Which addresses a sandbox is to reach.
//!
//! The engine knows one policy yet: all public addresses, and nothing else. What a caller
//! asks for is read and checked here; [`for_creation`] and [`set`] are the two places that
//! hand it on.

use std::net::IpAddr;

use ipnet::IpNet;
use wrenn_core::fleet::SandboxHandle;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent as wire;

use crate::errors::cut;

/// Networks that one sandbox may name.
const MAX_NETWORKS: usize = 1000;

/// What was asked for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Egress {
    /// Whether public addresses are reached that no list names.
    pub(super) allow_internet: bool,
    pub(super) allow: Vec<IpNet>,
    /// Goes before `allow`.
    pub(super) deny: Vec<IpNet>,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            allow_internet: true,
            allow: Vec::new(),
            deny: Vec::new(),
        }
    }
}

impl Egress {
    /// Reads a request; what is absent is the default.
    pub(super) fn read(asked: Option<wire::Egress>) -> Result<Self, ConnectError> {
        let Some(asked) = asked else {
            return Ok(Self::default());
        };
        let named = asked.allow.len() + asked.deny.len();
        if named > MAX_NETWORKS {
            return Err(ConnectError::invalid_argument(format!(
                "{named} networks are named, and at most {MAX_NETWORKS} are taken"
            )));
        }
        Ok(Self {
            allow_internet: asked.allow_internet,
            allow: networks(&asked.allow)?,
            deny: networks(&asked.deny)?,
        })
    }
}

fn networks(texts: &[String]) -> Result<Vec<IpNet>, ConnectError> {
    texts.iter().map(|text| network(text)).collect()
}

/// A network, or a single address.
fn network(text: &str) -> Result<IpNet, ConnectError> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network: IpNet = address.or_else(|_| text.parse()).map_err(|_| {
        ConnectError::invalid_argument(format!(
            "'{}' is no network; write one like 192.0.2.0/24, or a single address",
            cut(text, 64)
        ))
    })?;
    if network.trunc() != network {
        return Err(ConnectError::invalid_argument(format!(
            "{network} has host bits set; write {}",
            network.trunc()
        )));
    }
    Ok(network)
}

/// What a new sandbox gets.
pub(super) fn for_creation(egress: &Egress) -> Result<(), ConnectError> {
    if *egress == Egress::default() {
        return Ok(());
    }
    Err(not_yet())
}

/// What a sandbox gets from now on.
pub(super) fn set(_sandbox: &SandboxHandle, _egress: &Egress) -> Result<(), ConnectError> {
    Err(not_yet())
}

fn not_yet() -> ConnectError {
    ConnectError::unimplemented("sandboxes reach all public addresses; lists are not kept yet")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(allow: &[&str], deny: &[&str]) -> Result<Egress, ConnectError> {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        Egress::read(Some(wire::Egress {
            allow_internet: false,
            allow: texts(allow),
            deny: texts(deny),
        }))
    }

    #[test]
    fn addresses_and_networks_of_both_families_are_taken() {
        let egress = read(&["192.0.2.1", "2001:db8::/32"], &["198.51.100.0/24"]).unwrap();
        assert_eq!(egress.allow[0].to_string(), "192.0.2.1/32");
        assert_eq!(egress.allow[1].to_string(), "2001:db8::/32");
        assert_eq!(egress.deny[0].to_string(), "198.51.100.0/24");
        assert_eq!(Egress::read(None).unwrap(), Egress::default());
    }

    #[test]
    fn nonsense_and_too_many_are_refused() {
        for text in ["", "host.example", "192.0.2.0/33", "192.0.2.1/24"] {
            assert!(read(&[text], &[]).is_err(), "{text}");
        }
        assert!(read(&["192.0.2.1"; 501], &["192.0.2.1"; 499]).is_ok());
        assert!(read(&["192.0.2.1"; 501], &["192.0.2.1"; 500]).is_err());
    }
}
