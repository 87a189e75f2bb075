//! `POST /init`: what the host tells its guest after every boot and every resume.
//!
//! A guest that was resumed believes that it is still the moment of its snapshot, and
//! that it is alone: its clock is behind, and its random numbers are those of every
//! other guest from the same snapshot. The host sends time and entropy before user
//! code gets a chance to use either.
//!
//! Entropy is sent after a boot or a resume alone, so it also says that connections of before
//! have no other end any more: they are closed ([`crate::connections`]).
//!
//! Settings change only when everything that could fail has been checked; a clock or a
//! random generator that can't be set (the daemon is not root) is logged and left.

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use http::{Response, StatusCode};
use hyper::body::Incoming;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use wrenn_proto::buffa_types::google::protobuf::Timestamp;
use wrenn_proto::http::InitRequest;

use crate::auth::AccessToken;
use crate::connections::ConnectionId;
use crate::guest::Guest;
use crate::hostname;
use crate::identity;
use crate::reply::{self, Body, HttpError};
use crate::sys::entropy;
use crate::users::User;

/// A clock that is closer than this is left alone: the request's own way takes time too.
const TOLERATED_SKEW_NANOS: i128 = 20_000_000;

pub async fn init(
    guest: &Arc<Guest>,
    parts: &Parts,
    body: Incoming,
) -> Result<Response<Body>, HttpError> {
    let request: InitRequest = reply::read_json(body).await?.unwrap_or_default();
    let begun = request.entropy.is_some();
    apply(guest, request)?;
    if begun {
        let spared = parts.extensions.get::<ConnectionId>().copied();
        let closed = guest.connections.close_others(spared);
        tracing::debug!(closed, "the guest has booted or was resumed");
    }
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

fn apply(guest: &Guest, request: InitRequest) -> Result<(), HttpError> {
    let time = request.timestamp.as_deref().map(parse_time).transpose()?;
    let entropy = request.entropy.as_deref().map(parse_entropy).transpose()?;
    if let Some(user) = request
        .default_user
        .as_deref()
        .filter(|user| !user.is_empty())
    {
        User::lookup(user).map_err(|error| HttpError::bad_request(error.to_string()))?;
    }
    if request
        .volume_mounts
        .is_some_and(|mounts| !mounts.is_empty())
    {
        return Err(HttpError::new(
            StatusCode::NOT_IMPLEMENTED,
            "volume mounts are not supported",
        ));
    }

    if let Some(time) = time {
        set_clock(time).unwrap_or_else(|error| tracing::warn!(%error, "cannot set the clock"));
    }
    if let Some(bytes) = entropy {
        entropy::mix_in(&bytes)
            .unwrap_or_else(|error| tracing::warn!(%error, "cannot reseed random numbers"));
    }
    if let Some(name) = request.hostname.as_deref().filter(|name| !name.is_empty()) {
        rename(name);
    }
    guest.change_settings(|settings| {
        if let Some(token) = request.access_token {
            settings.access_token = AccessToken::new(token);
        }
        if let Some(env) = request.env_vars {
            settings.env = env;
        }
        if let Some(user) = request.default_user.filter(|user| !user.is_empty()) {
            settings.default_user = user;
        }
        if let Some(directory) = request.default_workdir {
            settings.default_workdir = Some(directory).filter(|directory| !directory.is_empty());
        }
    });
    Ok(())
}

/// One that gets another name than before goes on where somebody else was frozen.
fn rename(name: &str) {
    let known = rustix::system::uname();
    let renamed = known.nodename().to_bytes() != name.as_bytes();
    hostname::set(name).unwrap_or_else(|error| tracing::warn!(%error, "cannot set the host name"));
    if renamed {
        identity::renew()
            .unwrap_or_else(|error| tracing::warn!(%error, "cannot become somebody else"));
    }
}

fn parse_time(text: &str) -> Result<Timestamp, HttpError> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| HttpError::bad_request(format!("timestamp '{text}' is not RFC 3339")))
}

fn parse_entropy(text: &str) -> Result<Vec<u8>, HttpError> {
    let bytes = STANDARD
        .decode(text)
        .map_err(|_| HttpError::bad_request("entropy is not base64"))?;
    if bytes.len() > entropy::MAX_BYTES {
        return Err(HttpError::bad_request(format!(
            "entropy holds {} bytes, at most {} are taken",
            bytes.len(),
            entropy::MAX_BYTES
        )));
    }
    Ok(bytes)
}

fn set_clock(time: Timestamp) -> io::Result<()> {
    let wanted = Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanos.into(),
    };
    let nanos =
        |time: &Timespec| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    let off = nanos(&wanted) - nanos(&clock_gettime(ClockId::Realtime));
    if off.abs() <= TOLERATED_SKEW_NANOS {
        return Ok(());
    }
    Ok(clock_settime(ClockId::Realtime, wanted)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Settings;
    use crate::process::GracePeriods;

    fn guest() -> Arc<Guest> {
        Guest::new(
            Settings {
                access_token: None,
                env: [("KEPT".to_owned(), "1".to_owned())].into(),
                default_user: "root".to_owned(),
                default_workdir: None,
            },
            None,
            GracePeriods::default(),
        )
    }

    #[test]
    fn changes_what_was_given_and_nothing_else() {
        let guest = guest();
        let request = InitRequest {
            access_token: Some("secret".to_owned()),
            default_workdir: Some("/tmp".to_owned()),
            ..InitRequest::default()
        };
        apply(&guest, request).unwrap();
        let settings = guest.settings();
        assert_eq!(settings.access_token, AccessToken::new("secret"));
        assert_eq!(settings.default_workdir.as_deref(), Some("/tmp"));
        assert_eq!(settings.env.len(), 1);
        assert_eq!(settings.default_user, "root");
    }

    #[test]
    fn a_request_with_a_mistake_changes_nothing() {
        for request in [
            InitRequest {
                timestamp: Some("yesterday".to_owned()),
                ..InitRequest::default()
            },
            InitRequest {
                entropy: Some("%".to_owned()),
                ..InitRequest::default()
            },
            InitRequest {
                default_user: Some("no such user".to_owned()),
                ..InitRequest::default()
            },
        ] {
            let guest = guest();
            let request = InitRequest {
                access_token: Some("new".to_owned()),
                ..request
            };
            let error = apply(&guest, request).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert_eq!(guest.settings().access_token, None);
        }
    }

    #[test]
    fn reads_times_with_fractions_and_offsets() {
        let time = parse_time("2026-01-02T03:04:05.25Z").unwrap();
        assert_eq!((time.seconds, time.nanos), (1_767_323_045, 250_000_000));
        let shifted = parse_time("2026-01-02T05:04:05.25+02:00").unwrap();
        assert_eq!(shifted.seconds, time.seconds);
    }
}
