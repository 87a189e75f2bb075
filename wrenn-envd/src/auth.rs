//! Who may ask: the one place that decides about every request.
//!
//! ```text
//!   request ──▶ authorize ──▶ router
//!                  │
//!                  ├─ no token was ever given      → anybody
//!                  ├─ GET /health                  → anybody
//!                  ├─ X-Access-Token fits          → yes
//!                  ├─ GET, HEAD or POST /files with a
//!                  │  signature that fits          → yes
//!                  └─ anything else, known or not  → 401
//! ```
//!
//! Code in the guest can reach the daemon, so `/init` is open only until the first
//! token was given; from then on it needs the present one to bring the next.
//!
//! A signature lets the bearer of a URL read or write one path:
//! `v1_` + unpadded base64 of SHA-256 over `path:read|write:user:token[:expiration]`.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, Method};
use sha2::{Digest, Sha256};
use wrenn_proto::http::ACCESS_TOKEN_HEADER;

use crate::guest::Settings;
use crate::query::Query;
use crate::users::{LookupError, User};

/// The secret that the host shares with this guest. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

impl AccessToken {
    /// `None` for the empty string, which stands for "no token".
    pub fn new(token: impl Into<String>) -> Option<Self> {
        let token = token.into();
        (!token.is_empty()).then_some(Self(token))
    }

    /// The secret itself, for nothing but to keep it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not tell how much fits.
    fn matches(&self, offered: &[u8]) -> bool {
        constant_time_eq(&Sha256::digest(self.0.as_bytes()), &Sha256::digest(offered))
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .fold(0, |difference, (x, y)| difference | (x ^ y))
            == 0
}

/// Why a request was turned away. The texts are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "unauthorized access, please provide a valid access token or method signing if supported"
    )]
    NoToken,
    #[error("access token present in header but does not match")]
    WrongToken,
    #[error("missing signature query parameter")]
    NoSignature,
    #[error("invalid signature")]
    WrongSignature,
    #[error("invalid signature expiration")]
    BadExpiration,
    #[error("signature is already expired")]
    Expired,
}

/// Decides about one request by its head alone, before anything else looks at it.
pub fn authorize(parts: &Parts, settings: &Settings) -> Result<(), Refusal> {
    let Some(token) = &settings.access_token else {
        return Ok(());
    };
    let path = parts.uri.path();
    if path == "/health" && matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    if let Some(offered) = parts.headers.get(ACCESS_TOKEN_HEADER) {
        return if token.matches(offered.as_bytes()) {
            Ok(())
        } else {
            Err(Refusal::WrongToken)
        };
    }
    let operation = match (path, &parts.method) {
        ("/files", &Method::GET | &Method::HEAD) => Operation::Read,
        ("/files", &Method::POST) => Operation::Write,
        _ => return Err(Refusal::NoToken),
    };
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    check_signature(&query, operation, token, unix_now())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
}

fn check_signature(
    query: &Query,
    operation: Operation,
    token: &AccessToken,
    now: i64,
) -> Result<(), Refusal> {
    let signature = query.get("signature").ok_or(Refusal::NoSignature)?;
    let expiration = match query.get("signature_expiration") {
        None => None,
        Some(text) => Some(text.parse::<i64>().map_err(|_| Refusal::BadExpiration)?),
    };
    let path = query.get("path").unwrap_or_default();
    let user = query.get("username").unwrap_or_default();
    let expected = sign(path, operation, user, token, expiration);
    if !constant_time_eq(expected.as_bytes(), signature.as_bytes()) {
        return Err(Refusal::WrongSignature);
    }
    match expiration {
        Some(end) if end < now => Err(Refusal::Expired),
        _ => Ok(()),
    }
}

fn sign(
    path: &str,
    operation: Operation,
    user: &str,
    token: &AccessToken,
    expiration: Option<i64>,
) -> String {
    let operation = match operation {
        Operation::Read => "read",
        Operation::Write => "write",
    };
    let mut text = format!("{path}:{operation}:{user}:{}", token.0);
    if let Some(end) = expiration {
        text.push_str(&format!(":{end}"));
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
}

fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

#[derive(Debug, thiserror::Error)]
pub enum IdentifyError {
    #[error("the Authorization header must be Basic with a user name and no password")]
    Malformed,
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

/// The user that a request's `Authorization: Basic` names, or the default one.
pub fn identify(headers: &HeaderMap, settings: &Settings) -> Result<User, IdentifyError> {
    let name = match headers.get(AUTHORIZATION) {
        None => settings.default_user.clone(),
        Some(value) => basic_user(value.as_bytes()).ok_or(IdentifyError::Malformed)?,
    };
    let name = if name.is_empty() {
        settings.default_user.clone()
    } else {
        name
    };
    Ok(User::lookup(&name)?)
}

fn basic_user(value: &[u8]) -> Option<String> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest.trim_ascii()).ok()?).ok()?;
    let (user, _password) = decoded.split_once(':')?;
    Some(user.to_owned())
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
