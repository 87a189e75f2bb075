//! Names of sandboxes.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::{Deserialize, Serialize};

/// Letters and digits that an id may hold. It becomes a label of a host name, so no
/// upper case and no dash.
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const PREFIX: &str = "sb";
const RANDOM_LEN: usize = 20;

/// The id of a sandbox: `sb` and 20 lower-case letters and digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// A text that is no sandbox id.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no sandbox id: one is 'sb' and 20 lower-case letters or digits")]
pub struct InvalidSandboxId(pub String);

/// A new id: the prefix, then 103 bits of the operating system's randomness.
pub(crate) fn random(prefix: &str) -> String {
    let mut rng = rand::rng();
    let mut text = String::with_capacity(prefix.len() + RANDOM_LEN);
    text.push_str(prefix);
    text.extend((0..RANDOM_LEN).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])));
    text
}

/// Whether a text is an id of this prefix.
pub(crate) fn fits(prefix: &str, text: &str) -> bool {
    text.len() == prefix.len() + RANDOM_LEN
        && text.starts_with(prefix)
        && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

impl SandboxId {
    /// A new id, from 103 bits of the operating system's randomness.
    #[must_use]
    pub fn random() -> Self {
        Self(random(PREFIX))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = InvalidSandboxId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if fits(PREFIX, text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidSandboxId(text.to_owned()))
        }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = InvalidSandboxId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_is_valid_and_new() {
        let first = SandboxId::random();
        assert_eq!(first.as_str().parse::<SandboxId>().unwrap(), first);
        assert_ne!(first, SandboxId::random());
    }

    #[test]
    fn what_cannot_be_a_host_label_is_refused() {
        for text in [
            "",
            "sb",
            "sb-aaaaaaaaaaaaaaaaaaa",
            "SBaaaaaaaaaaaaaaaaaaaa",
            "xxaaaaaaaaaaaaaaaaaaaa",
            "sbaaaaaaaaaaaaaaaaaaa/",
        ] {
            assert!(text.parse::<SandboxId>().is_err(), "{text} was taken");
        }
    }
}
