//! Ids: a prefix of two letters that tells the kind, then 20 lower-case letters and digits.
//!
//! There is no dash in them, since a sandbox's id becomes a label of a host name.

use std::fmt;
use std::str::FromStr;

use rand::Rng as _;

use crate::error::{InvalidValue, shorten};

const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const RANDOM_CHARS: usize = 20;

fn random(prefix: &str) -> String {
    let mut rng = rand::rng();
    let tail = (0..RANDOM_CHARS).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    prefix.chars().chain(tail).collect()
}

fn is_id(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|tail| {
        tail.len() == RANDOM_CHARS && tail.bytes().all(|byte| ALPHABET.contains(&byte))
    })
}

macro_rules! id {
    ($(#[$meta:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The two letters that each id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A new id, from 103 random bits.
            #[must_use]
            pub fn random() -> Self {
                Self(random($prefix))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                if is_id($prefix, text) {
                    return Ok(Self(text.to_owned()));
                }
                Err(InvalidValue {
                    what: $what,
                    value: shorten(text),
                    expected: concat!("'", $prefix, "' and 20 lower-case letters and digits"),
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::schema::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some(concat!("^", $prefix, "[a-z0-9]{20}$")))
                    .build()
                    .into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                std::borrow::Cow::Borrowed(stringify!($name))
            }
        }
    };
}

id!(
    /// A sandbox.
    SandboxId, "sb", "sandbox id"
);
id!(
    /// A template: an image template or a snapshot.
    TemplateId, "tm", "template id"
);
id!(
    /// A user.
    UserId, "us", "user id"
);
id!(
    /// A team.
    TeamId, "te", "team id"
);
id!(
    /// An API key. Not the key itself.
    KeyId, "ke", "key id"
);
id!(
    /// A host.
    HostId, "ho", "host id"
);
id!(
    /// A lifecycle event.
    EventId, "ev", "event id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse_and_differ() {
        let id = SandboxId::random();
        assert_eq!(id.as_str().parse::<SandboxId>().unwrap(), id);
        assert_ne!(id, SandboxId::random());
        assert!(id.as_str().parse::<TemplateId>().is_err());
    }

    #[test]
    fn invalid_ids_are_refused_with_expected_form() {
        for text in [
            "",
            "sb",
            "sbAAAAAAAAAAAAAAAAAAAA",
            "../../etc/passwd",
            "sb-0123456789012345678",
        ] {
            let error = text.parse::<SandboxId>().unwrap_err().to_string();
            assert!(error.contains("'sb' and 20 lower-case letters"), "{error}");
        }
        let long = "x".repeat(5000);
        assert!(long.parse::<HostId>().unwrap_err().to_string().len() < 200);
    }
}
