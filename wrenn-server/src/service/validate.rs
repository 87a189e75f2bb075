//! Bounds of what callers send, checked before a row is written.

use std::collections::BTreeMap;

use wrenn_api::error::shorten;
use wrenn_api::id::{SandboxId, TemplateId};
use wrenn_api::sandbox::{MAX_METADATA_BYTES, Network};

use super::error::ServiceError;

/// The longest name, in characters.
pub(crate) const MAX_NAME_CHARS: usize = 63;
const MAX_VCPUS: u32 = 32;
const MIN_MEMORY_MB: u32 = 64;
const MAX_MEMORY_MB: u32 = 1 << 20;
/// A hundred years.
const MAX_TIMEOUT_SEC: u64 = 100 * 366 * 24 * 3600;
const MAX_NETWORKS: usize = 256;
const MAX_TEMPLATE_CHARS: usize = 255;

type Checked = Result<(), ServiceError>;

fn invalid(message: impl Into<String>) -> ServiceError {
    ServiceError::Invalid(message.into())
}

/// A name that a user gives to a sandbox or a snapshot.
pub(crate) fn name(name: &str) -> Checked {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fits = (1..=MAX_NAME_CHARS).contains(&name.len())
        && name.bytes().all(|byte| plain(byte) || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !fits {
        return Err(invalid(format!(
            "'name' is '{}'; a name has 1 to {MAX_NAME_CHARS} lower-case letters, digits and \
             dashes, and begins and ends with a letter or digit",
            shorten(name)
        )));
    }
    if name.parse::<SandboxId>().is_ok() || name.parse::<TemplateId>().is_ok() {
        return Err(invalid(format!(
            "'name' is '{name}', which looks like an id; choose another one"
        )));
    }
    Ok(())
}

pub(crate) fn template(reference: &str) -> Checked {
    let fits = (1..=MAX_TEMPLATE_CHARS).contains(&reference.len())
        && reference.chars().all(|c| !c.is_control() && c != '/');
    if fits {
        return Ok(());
    }
    Err(invalid(format!(
        "'template' is '{}'; give a template's name or id",
        shorten(reference)
    )))
}

pub(crate) fn vcpus(vcpus: u32) -> Checked {
    if (1..=MAX_VCPUS).contains(&vcpus) {
        return Ok(());
    }
    Err(invalid(format!(
        "'vcpus' is {vcpus}; give 1 to {MAX_VCPUS}"
    )))
}

pub(crate) fn memory_mb(memory_mb: u32) -> Checked {
    if (MIN_MEMORY_MB..=MAX_MEMORY_MB).contains(&memory_mb) {
        return Ok(());
    }
    Err(invalid(format!(
        "'memory_mb' is {memory_mb}; give {MIN_MEMORY_MB} to {MAX_MEMORY_MB}"
    )))
}

pub(crate) fn timeout_sec(timeout_sec: u64) -> Checked {
    if timeout_sec <= MAX_TIMEOUT_SEC {
        return Ok(());
    }
    Err(invalid(format!(
        "'timeout_sec' is {timeout_sec}; give at most {MAX_TIMEOUT_SEC}, or 0 for never"
    )))
}

pub(crate) fn metadata(metadata: &BTreeMap<String, String>) -> Checked {
    bounded("metadata", metadata)
}

pub(crate) fn env(env: &BTreeMap<String, String>) -> Checked {
    bounded("env", env)?;
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(invalid(format!(
                "'env' has the name '{}'; a name is not empty and has no '='",
                shorten(name)
            )));
        }
        if value.contains('\0') {
            return Err(invalid(format!(
                "'env.{}' has a zero byte, which no variable can have",
                shorten(name)
            )));
        }
    }
    Ok(())
}

fn bounded(field: &str, map: &BTreeMap<String, String>) -> Checked {
    let size: usize = map
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if size <= MAX_METADATA_BYTES {
        return Ok(());
    }
    Err(invalid(format!(
        "'{field}' has {size} bytes; give at most {MAX_METADATA_BYTES}"
    )))
}

pub(crate) fn network(network: &Network) -> Checked {
    for (field, list) in [("allow", &network.allow), ("deny", &network.deny)] {
        if list.len() > MAX_NETWORKS {
            return Err(invalid(format!(
                "'network.{field}' has {} entries; give at most {MAX_NETWORKS}",
                list.len()
            )));
        }
        for entry in list {
            if !is_network(entry) {
                return Err(invalid(format!(
                    "'network.{field}' has '{}'; give an address like 192.0.2.1 or a network \
                     like 192.0.2.0/24",
                    shorten(entry)
                )));
            }
        }
    }
    Ok(())
}

fn is_network(entry: &str) -> bool {
    let (address, prefix) = match entry.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (entry, None),
    };
    let Ok(address) = address.parse::<std::net::IpAddr>() else {
        return false;
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    prefix.is_none_or(|prefix| {
        prefix.bytes().all(|byte| byte.is_ascii_digit())
            && prefix.parse::<u8>().is_ok_and(|prefix| prefix <= longest)
    })
}

/// Refuses what no host can do yet, by name.
pub(crate) fn not_offered(field: &str, asked: bool) -> Checked {
    if asked {
        return Err(invalid(format!(
            "'{field}' is not offered by this server yet; leave it out"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_a_host_name_label() {
        for good in ["a", "web-1", &"x".repeat(63)] {
            name(good).unwrap();
        }
        let id = SandboxId::random().to_string();
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a b",
            "\u{1b}[0m",
            &"x".repeat(64),
            &id,
        ] {
            name(bad).unwrap_err();
        }
    }

    #[test]
    fn network_entries_are_addresses_or_networks() {
        for good in ["192.0.2.1", "192.0.2.0/24", "2001:db8::/32"] {
            assert!(is_network(good), "{good}");
        }
        for bad in [
            "",
            "example.com",
            "192.0.2.0/33",
            "192.0.2.0/",
            "192.0.2.0/+8",
            "::/129",
        ] {
            assert!(!is_network(bad), "{bad}");
        }
    }
}
