//! Names of builds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const PREFIX: &str = "bd";

/// The id of a build: `bd` and 20 lower-case letters and digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BuildId(String);

/// A text that is no build id.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no build id: one is 'bd' and 20 lower-case letters or digits")]
pub struct InvalidBuildId(pub String);

impl BuildId {
    /// Length of every id, in bytes.
    pub const LENGTH: usize = 22;

    /// A new id, from 103 bits of the operating system's randomness.
    #[must_use]
    pub fn random() -> Self {
        Self(crate::id::random(PREFIX))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BuildId {
    type Err = InvalidBuildId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if crate::id::fits(PREFIX, text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidBuildId(text.to_owned()))
        }
    }
}

impl TryFrom<String> for BuildId {
    type Error = InvalidBuildId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BuildId> for String {
    fn from(id: BuildId) -> Self {
        id.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_is_valid_and_new() {
        let first = BuildId::random();
        assert_eq!(first.as_str().parse::<BuildId>().unwrap(), first);
        assert_eq!(first.as_str().len(), BuildId::LENGTH);
        assert_ne!(first, BuildId::random());
    }

    #[test]
    fn what_could_leave_the_directory_is_refused() {
        for text in [
            "",
            "bd",
            "../aaaaaaaaaaaaaaaaaaa",
            "sbaaaaaaaaaaaaaaaaaaaa",
            "bdAaaaaaaaaaaaaaaaaaaa",
        ] {
            assert!(text.parse::<BuildId>().is_err(), "{text} was taken");
        }
    }
}
