//! The query part of a URL.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// Decoded pairs in their order. `+` means a space, as browsers write it.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Never fails: what is not UTF-8 comes out with replacement characters, and will
    /// name no file.
    pub fn parse(text: &str) -> Self {
        let decode = |part: &str| {
            let spaced: Cow<'_, str> = if part.contains('+') {
                part.replace('+', " ").into()
            } else {
                part.into()
            };
            percent_decode(spaced.as_bytes())
                .decode_utf8_lossy()
                .into_owned()
        };
        Self(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    /// The first value of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_pairs() {
        let query = Query::parse("path=%2Ftmp%2Fa+b%2B&username=&flag&path=second&&");
        assert_eq!(query.get("path"), Some("/tmp/a b+"));
        assert_eq!(query.get("username"), Some(""));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("none"), None);
    }
}
