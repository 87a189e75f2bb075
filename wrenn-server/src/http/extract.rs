//! Strict bodies and queries: what is not known is named and refused.

use std::str::FromStr;

use axum::extract::rejection::PathRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequest, FromRequestParts, Multipart, Request};
use bytes::Bytes;
use http::request::Parts;
use serde::de::DeserializeOwned;
use wrenn_api::error::{ErrorCode, shorten};

use super::error::HttpError;

/// The longest JSON body: an exec with 16 MiB of input in base64, and what is said about it.
const MAX_JSON_BYTES: usize = 24 << 20;
/// The longest message of the JSON parser that is passed on.
const MAX_PARSER_CHARS: usize = 512;

/// A JSON body. An empty one stands for `{}` where the type has defaults for everything.
pub(crate) struct Body<T>(pub(crate) T, pub(crate) Bytes);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = HttpError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, HttpError> {
        let bytes = read(request, MAX_JSON_BYTES).await?;
        let text = if bytes.iter().all(u8::is_ascii_whitespace) {
            b"{}".as_slice()
        } else {
            &bytes
        };
        // Structs would be read from arrays as well.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Err(HttpError::invalid(
                "the body cannot be used: it is no JSON object",
            ));
        }
        match serde_json::from_slice(text) {
            Ok(value) => Ok(Self(value, bytes)),
            Err(error) => Err(HttpError::invalid(format!(
                "the body cannot be used: {}",
                parser_message(&error)
            ))),
        }
    }
}

/// What the JSON parser says, without the text that it found: that may be a secret, and the
/// caller may log the error.
pub(crate) fn parser_message(error: &serde_json::Error) -> String {
    const FOUND: &str = ": string \"";
    const EXPECTED: &str = "\", expected ";
    let mut message = error.to_string();
    if let (Some(found), Some(expected)) = (message.find(FOUND), message.rfind(EXPECTED))
        && found < expected
    {
        message.replace_range(found + FOUND.len() - 1..=expected, "");
        message = message.replacen(": string ,", ": string,", 1);
    }
    if let Some((end, _)) = message.char_indices().nth(MAX_PARSER_CHARS) {
        message.truncate(end);
    }
    message
}

/// The whole body of a request, up to `limit` bytes.
pub(crate) async fn read(request: Request, limit: usize) -> Result<Bytes, HttpError> {
    axum::body::to_bytes(request.into_body(), limit)
        .await
        .map_err(|error| {
            let too_large = std::error::Error::source(&error)
                .is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
            if too_large {
                HttpError::new(
                    ErrorCode::TooLarge,
                    format!(
                        "the body has more than {} MiB; use a streaming route for more",
                        limit >> 20
                    ),
                )
            } else {
                HttpError::invalid("the body ended before it was whole")
            }
        })
}

/// Segments of the path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(HttpError))]
pub(crate) struct Path<T>(pub(crate) T);

impl From<PathRejection> for HttpError {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid(format!(
            "the path cannot be used: {}",
            rejection.body_text()
        ))
    }
}

/// A form with a file.
pub(crate) struct Form(pub(crate) Multipart);

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = HttpError;

    async fn from_request(request: Request, state: &S) -> Result<Self, HttpError> {
        match Multipart::from_request(request, state).await {
            Ok(form) => Ok(Self(form)),
            Err(rejection) => Err(HttpError::invalid(format!(
                "the form cannot be read: {}",
                rejection.body_text()
            ))),
        }
    }
}

/// A request that becomes a WebSocket.
pub(crate) struct Upgrade(pub(crate) WebSocketUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        match WebSocketUpgrade::from_request_parts(parts, state).await {
            Ok(upgrade) => Ok(Self(upgrade)),
            Err(rejection) => Err(HttpError::invalid(format!(
                "this path is used over a WebSocket: {}",
                rejection.body_text()
            ))),
        }
    }
}

/// A query whose names are taken one after another; [`finish`](Self::finish) refuses the rest.
#[derive(Debug)]
pub(crate) struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, HttpError> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query)
            .map_err(|_| HttpError::invalid("the query is not url-encoded"))?;
        Ok(Self(pairs))
    }
}

impl Query {
    /// Every value of a name.
    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        let mut taken = Vec::new();
        self.0.retain_mut(|(key, value)| {
            let is_it = key == name;
            if is_it {
                taken.push(std::mem::take(value));
            }
            !is_it
        });
        taken
    }

    /// The value of a name that is given at most once.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, HttpError> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(HttpError::invalid(format!(
                "'{name}' is given more than once"
            )));
        }
        Ok(values.pop())
    }

    /// The value of a name that must be there.
    pub(crate) fn required(&mut self, name: &str) -> Result<String, HttpError> {
        self.text(name)?
            .ok_or_else(|| HttpError::invalid(format!("the query lacks '{name}'")))
    }

    /// A value of another type.
    pub(crate) fn parse<T: FromStr>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, HttpError> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            HttpError::invalid(format!("'{name}' is '{}'; give {expected}", shorten(&text)))
        })
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, HttpError> {
        Ok(self.parse(name, "true or false")?.unwrap_or(false))
    }

    /// The size of a page.
    pub(crate) fn limit(&mut self) -> Result<u32, HttpError> {
        use wrenn_api::page::MAX_LIMIT;
        let limit = self
            .parse("limit", "a number from 1 to 100")?
            .unwrap_or(MAX_LIMIT);
        if (1..=MAX_LIMIT).contains(&limit) {
            return Ok(limit);
        }
        Err(HttpError::invalid(format!(
            "'limit' is {limit}; give a number from 1 to {MAX_LIMIT}"
        )))
    }

    /// Refuses names that nobody took.
    pub(crate) fn finish(self) -> Result<(), HttpError> {
        match self.0.first() {
            Some((name, _)) => Err(HttpError::invalid(format!(
                "the query has the unknown name '{}'",
                shorten(name)
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parser_message_repeats_no_text() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "only read")]
        struct Form {
            map: Option<std::collections::BTreeMap<String, String>>,
            number: Option<u32>,
        }
        let message = |text: &str| parser_message(&serde_json::from_str::<Form>(text).unwrap_err());
        for text in [
            r#"{"map":"a secret"}"#,
            r#"{"number":"a secret"}"#,
            r#"{"map":"a secret\", expected \""}"#,
        ] {
            let message = message(text);
            assert!(!message.contains("secret"), "{message}");
            assert!(message.contains(": string, expected "), "{message}");
        }
        assert!(message(r#"{"mapp":1}"#).contains("unknown field `mapp`"));
    }
}
