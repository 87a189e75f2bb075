//! Reads what a caller wants a sandbox to connect to.

use std::net::Ipv4Addr;

use wrenn_core::network::{EgressDefault, EgressPolicy, Ipv4Net};
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent as wire;

use crate::errors::{cut, invalid};

/// Reads a policy; what is absent is the default.
pub(super) fn policy(asked: Option<wire::Egress>) -> Result<EgressPolicy, ConnectError> {
    let Some(asked) = asked else {
        return Ok(EgressPolicy::default());
    };
    let default = if asked.allow_internet {
        EgressDefault::AllowInternet
    } else {
        EgressDefault::DenyAll
    };
    EgressPolicy::new(default, networks(&asked.allow)?, networks(&asked.deny)?)
        .map_err(|error| invalid(error.to_string()))
}

fn networks(texts: &[String]) -> Result<Vec<Ipv4Net>, ConnectError> {
    texts.iter().map(|text| network(text)).collect()
}

/// A network, or a single address.
fn network(text: &str) -> Result<Ipv4Net, ConnectError> {
    let address = text.parse::<Ipv4Addr>().map(Ipv4Net::from);
    let network: Ipv4Net = address.or_else(|_| text.parse()).map_err(|_| {
        invalid(format!(
            "'{}' is no IPv4 network; write one like 192.0.2.0/24, or a single address. \
             Nothing is reached over IPv6",
            cut(text, 64)
        ))
    })?;
    if network.trunc() != network {
        return Err(invalid(format!(
            "{network} has host bits set; write {}",
            network.trunc()
        )));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(allow: &[&str], deny: &[&str]) -> Result<EgressPolicy, ConnectError> {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        policy(Some(wire::Egress {
            allow_internet: false,
            allow: texts(allow),
            deny: texts(deny),
        }))
    }

    #[test]
    fn addresses_and_networks_are_taken() {
        let read = read(&["192.0.2.1"], &["198.51.100.0/24"]).unwrap();
        assert_eq!(read.allow_list()[0].to_string(), "192.0.2.1/32");
        assert_eq!(read.deny_list()[0].to_string(), "198.51.100.0/24");
        assert_eq!(policy(None).unwrap(), EgressPolicy::default());
    }

    #[test]
    fn nonsense_and_too_many_are_refused() {
        for text in [
            "",
            "host.example",
            "192.0.2.0/33",
            "192.0.2.1/24",
            "2001:db8::/32",
        ] {
            assert!(read(&[text], &[]).is_err(), "{text}");
        }
        assert!(read(&["192.0.2.1"; 501], &["192.0.2.1"; 499]).is_ok());
        assert!(read(&["192.0.2.1"; 501], &["192.0.2.1"; 500]).is_err());
    }
}
