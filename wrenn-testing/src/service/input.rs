//! Bounds of what callers send, as an agent has them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::{Egress, TerminalSize};
use wrenn_proto::process::{PTY, pty};

use crate::errors::invalid;
use crate::host::{Host, Visit};

/// What a whole-file call takes, and an Exec gives, in bytes.
pub(super) const MAX_WHOLE: usize = 16 << 20;
/// `PATH_MAX` of Linux, its last zero left out.
const MAX_PATH: usize = 4095;
const MAX_USER: usize = 256;
const MAX_MAP: usize = 64 << 10;

type Checked<T> = Result<T, ConnectError>;

/// Enters the guest of a running sandbox.
pub(super) fn visit(host: &Arc<Host>, id: &str) -> Checked<Visit> {
    host.sandbox(id)?.visit()
}

/// A path that may be empty, which means the user's home.
pub(super) fn path(text: &str) -> Checked<&str> {
    if text.len() > MAX_PATH {
        let beginning: String = text.chars().take(64).collect();
        return Err(invalid(format!(
            "the path '{beginning}…' is longer than {MAX_PATH} bytes"
        )));
    }
    no_zero("a path", text)?;
    Ok(text)
}

/// The path of something that is to be changed.
pub(super) fn named_path<'a>(field: &str, text: &'a str) -> Checked<&'a str> {
    if text.is_empty() {
        return Err(invalid(format!("'{field}' is empty; name a path")));
    }
    path(text)
}

/// A user's name, which may be empty.
pub(super) fn user(text: &str) -> Checked<&str> {
    if text.len() > MAX_USER {
        return Err(invalid(format!(
            "a user's name has at most {MAX_USER} bytes"
        )));
    }
    if text.contains([':', '\n', '\0']) {
        return Err(invalid(
            "a user's name has no colon, line break or zero byte",
        ));
    }
    Ok(text)
}

/// Permission bits.
pub(super) fn mode(mode: Option<u32>) -> Checked<Option<u32>> {
    match mode {
        Some(mode) if mode > 0o7777 => {
            Err(invalid(format!("{mode:#o} is no mode; use 0 to 0o7777")))
        }
        mode => Ok(mode),
    }
}

/// Names and values, bounded.
pub(super) fn map(
    kind: &str,
    map: impl IntoIterator<Item = (String, String)>,
) -> Checked<BTreeMap<String, String>> {
    let map: BTreeMap<String, String> = map.into_iter().collect();
    let size: usize = map
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if size > MAX_MAP {
        return Err(invalid(format!(
            "{kind} has {size} bytes, and at most {MAX_MAP} are taken"
        )));
    }
    Ok(map)
}

/// An environment, as the kernel takes one.
pub(super) fn environment(
    env: impl IntoIterator<Item = (String, String)>,
) -> Checked<BTreeMap<String, String>> {
    let env = map("the environment", env)?;
    for (name, value) in &env {
        if name.is_empty() || name.contains('=') {
            return Err(invalid(format!("'{name}' is no name of a variable")));
        }
        no_zero("a variable", name)?;
        no_zero("a variable", value)?;
    }
    Ok(env)
}

pub(super) fn no_zero(kind: &str, text: &str) -> Checked<()> {
    if text.contains('\0') {
        return Err(invalid(format!("{kind} has no zero byte")));
    }
    Ok(())
}

/// A terminal's size; a zero gets the size that terminals have always had.
pub(super) fn terminal_size(size: &TerminalSize) -> Checked<PTY> {
    let side = |asked: u32, default: u32| match asked {
        0 => Ok(default),
        asked if asked <= u32::from(u16::MAX) => Ok(asked),
        asked => Err(invalid(format!("no terminal has {asked} columns or rows"))),
    };
    let size = pty::Size {
        cols: side(size.cols, 80)?,
        rows: side(size.rows, 24)?,
    };
    Ok(PTY { size: size.into() })
}

/// Networks that can be written.
pub(super) fn egress(egress: Option<&Egress>) -> Checked<()> {
    let Some(egress) = egress else {
        return Ok(());
    };
    for text in egress.allow.iter().chain(&egress.deny) {
        let address = text.parse::<Ipv4Addr>().map(Ipv4Net::from);
        let network: Ipv4Net = address.or_else(|_| text.parse()).map_err(|_| {
            invalid(format!(
                "'{text}' is no IPv4 network; write one like 192.0.2.0/24, or a single address. \
                 Nothing is reached over IPv6"
            ))
        })?;
        if network.trunc() != network {
            return Err(invalid(format!(
                "{network} has host bits set; write {}",
                network.trunc()
            )));
        }
    }
    Ok(())
}
