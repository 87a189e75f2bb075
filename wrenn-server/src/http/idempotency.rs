//! The Idempotency-Key of a request, and answers that are replayed.

use axum::Json;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse as _, Response};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use wrenn_api::id::TeamId;

use super::error::HttpError;
use crate::service::create::Answer;
use crate::store::KeyedRequest;

pub(super) const HEADER: &str = "idempotency-key";
const MAX_KEY_CHARS: usize = 255;

/// The key of a request, with its method and path.
pub(crate) struct IdempotencyKey {
    key: Option<String>,
    route: String,
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, HttpError> {
        let key = match parts.headers.get(HEADER) {
            None => None,
            Some(value) => {
                let fits = (1..=MAX_KEY_CHARS).contains(&value.len())
                    && value
                        .as_bytes()
                        .iter()
                        .all(|byte| (b' '..=b'~').contains(byte));
                if !fits {
                    return Err(HttpError::invalid(format!(
                        "'Idempotency-Key' has 1 to {MAX_KEY_CHARS} printable characters"
                    )));
                }
                value.to_str().ok().map(str::to_owned)
            }
        };
        // The query changes what is made, as the body does.
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
        Ok(Self {
            key,
            route: format!("{} {path}", parts.method),
        })
    }
}

impl IdempotencyKey {
    /// The request that is kept; none where it has no key.
    pub(crate) fn bind(self, team: &TeamId, body: &[u8]) -> Option<KeyedRequest> {
        let digest = Sha256::digest(body);
        Some(KeyedRequest {
            team: team.clone(),
            route: self.route,
            key: self.key?,
            body_hash: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// The answer, new or as it was given before.
pub(crate) fn created<T: Serialize>(answer: Answer<T>) -> Response {
    match answer {
        Answer::Fresh(value) => (StatusCode::CREATED, Json(value)).into_response(),
        Answer::Replay { status, body } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::CREATED);
            let mut response = (status, body).into_response();
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
            response
        }
    }
}
