//! Access to the agent: the one place that decides about every request.
//!
//! ```text
//!  request ─▶ Host ──────────▶ Origin ─────────▶ token ─────────────▶ RPC, /metrics
//!             every path,      RPCs: there is     all but /healthz, and
//!             every listener   none at all        /metrics on its own listener
//!               │ 403            │ 403              │ unauthenticated
//! ```
//!
//! A port on loopback is no login: any user of the host reaches it, and any web page through
//! the browser of one, by a name of its own that it lets point to 127.0.0.1 (DNS rebinding).
//! The page's name then stands in `Host`, so only names are answered that are known.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;
use http::uri::Authority;

/// The secret that callers present. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentToken(String);

impl AgentToken {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Compares in a time that tells no more than how long the token is.
    fn matches(&self, offered: &[u8]) -> bool {
        let expected = self.0.as_bytes();
        let different = expected
            .iter()
            .zip(offered)
            .fold(0, |different, (x, y)| different | (x ^ y));
        expected.len() == offered.len() && std::hint::black_box(different) == 0
    }
}

impl fmt::Debug for AgentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentToken(…)")
    }
}

/// A name or address of this host in `Host`, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost(String);

/// A text that cannot be such a name.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no name or address of a host; write it without scheme and port")]
pub struct InvalidHost(String);

impl FromStr for AllowedHost {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let invalid = || InvalidHost(text.to_owned());
        let authority: Authority = text.parse().map_err(|_| invalid())?;
        let unspecified = address(authority.host()).is_some_and(|ip| ip.is_unspecified());
        if authority.port().is_some() || authority.as_str().contains('@') || unspecified {
            return Err(invalid());
        }
        Ok(Self(authority.host().to_ascii_lowercase()))
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error(
        "this agent does not answer to the name in Host; call it by its address, or allow the name with --allowed-host"
    )]
    Host,
    #[error("the agent takes no calls from browsers")]
    Origin,
    #[error(
        "the agent's token is missing; send it as 'Authorization: Bearer …', it lies in the file agent-token of the root directory"
    )]
    NoToken,
    #[error("this is not the agent's token; it lies in the file agent-token of the root directory")]
    WrongToken,
}

/// The rules that requests are held against.
#[derive(Debug)]
pub(crate) struct Guard {
    token: AgentToken,
    hosts: Vec<AllowedHost>,
}

impl Guard {
    pub(crate) fn new(token: AgentToken, hosts: Vec<AllowedHost>) -> Self {
        Self { token, hosts }
    }

    /// Whether the request is meant for this agent: every name that it was sent to is known.
    /// `local` is the address at which the connection arrived.
    pub(crate) fn check_host(&self, parts: &Parts, local: IpAddr) -> Result<(), Denied> {
        let mut named = false;
        if let Some(authority) = parts.uri.authority() {
            named = true;
            self.check_name(authority, local)?;
        }
        let mut headers = parts.headers.get_all(HOST).iter();
        if let Some(host) = headers.next() {
            named = true;
            let authority = Authority::try_from(host.as_bytes()).map_err(|_| Denied::Host)?;
            self.check_name(&authority, local)?;
        }
        if !named || headers.next().is_some() {
            return Err(Denied::Host);
        }
        Ok(())
    }

    fn check_name(&self, authority: &Authority, local: IpAddr) -> Result<(), Denied> {
        let host = authority.host();
        let known = match address(host) {
            // A browser that goes to an address was not led there by somebody's name.
            Some(ip) => ip.is_loopback() || (ip == local && !ip.is_unspecified()),
            None => host.eq_ignore_ascii_case("localhost"),
        };
        let allowed = || {
            self.hosts
                .iter()
                .any(|name| name.0.eq_ignore_ascii_case(host))
        };
        if !authority.as_str().contains('@') && (known || allowed()) {
            Ok(())
        } else {
            Err(Denied::Host)
        }
    }

    /// Whether a browser sends the request for a page.
    pub(crate) fn check_origin(headers: &HeaderMap) -> Result<(), Denied> {
        if headers.contains_key(ORIGIN) {
            return Err(Denied::Origin);
        }
        Ok(())
    }

    /// Whether the request has the token.
    pub(crate) fn check_token(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().ok_or(Denied::NoToken)?;
        let offered = bearer(value.as_bytes()).ok_or(Denied::NoToken)?;
        if self.token.matches(offered) && values.next().is_none() {
            Ok(())
        } else {
            Err(Denied::WrongToken)
        }
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// The address that a host part spells out, IPv6 in its brackets.
fn address(host: &str) -> Option<IpAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    bare.parse().ok()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn guard() -> Guard {
        let hosts = vec!["agent.example".parse().unwrap()];
        Guard::new(AgentToken::new("secret".to_owned()), hosts)
    }

    fn host(uri: &str, hosts: &[&str]) -> Result<(), Denied> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        guard().check_host(&parts, "10.0.2.15".parse().unwrap())
    }

    #[test]
    fn known_hosts_are_answered_on_any_port() {
        for name in [
            "localhost",
            "LocalHost:1",
            "127.0.0.1",
            "127.0.0.1:41207",
            "[::1]:7410",
            "10.0.2.15:7410",
            "agent.example",
            "Agent.Example:443",
        ] {
            assert_eq!(host("/", &[name]), Ok(()), "{name}");
            assert_eq!(host(&format!("http://{name}/"), &[]), Ok(()), "{name}");
        }
    }

    #[test]
    fn unknown_hosts_are_refused() {
        for name in [
            "evil.example",
            "localhost.evil.example",
            "agent.example.evil.example",
            "0.0.0.0",
            "0.0.0.0:7410",
            "[::]:7410",
            "10.0.2.16",
            "localhost@evil.example",
            "evil.example@localhost",
            "",
            "a b",
        ] {
            assert_eq!(host("/", &[name]), Err(Denied::Host), "{name}");
        }
        assert_eq!(host("/", &[]), Err(Denied::Host));
        assert_eq!(host("/", &["localhost", "evil.example"]), Err(Denied::Host));
        assert_eq!(
            host("http://evil.example/", &["localhost"]),
            Err(Denied::Host)
        );
        assert_eq!(
            host("http://localhost/", &["evil.example"]),
            Err(Denied::Host)
        );
    }

    #[test]
    fn allowed_hosts_are_names_without_a_port() {
        for name in [
            "a.example:1",
            "http://a.example",
            "",
            "0.0.0.0",
            "[::]",
            "a b",
            "u@a",
        ] {
            assert!(name.parse::<AllowedHost>().is_err(), "{name}");
        }
        for name in ["a.example", "192.0.2.1", "[2001:db8::1]", "machine"] {
            assert_eq!(name.parse::<AllowedHost>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn only_the_token_is_let_through() {
        let check = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            guard().check_token(&headers)
        };
        assert_eq!(check(&["Bearer secret"]), Ok(()));
        assert_eq!(check(&["bearer secret"]), Ok(()));
        assert_eq!(check(&[]), Err(Denied::NoToken));
        assert_eq!(check(&["Basic secret"]), Err(Denied::NoToken));
        assert_eq!(check(&["secret"]), Err(Denied::NoToken));
        for wrong in ["Bearer ", "Bearer secre", "Bearer secrets", "Bearer Secret"] {
            assert_eq!(check(&[wrong]), Err(Denied::WrongToken), "{wrong}");
        }
        let twice = ["Bearer secret", "Bearer other"];
        assert_eq!(check(&twice), Err(Denied::WrongToken));
        assert_eq!(format!("{:?}", guard().token), "AgentToken(…)");
    }
}
