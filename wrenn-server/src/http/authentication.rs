//! Who a request is from: an API key, the same as a bearer token, or a browser's session.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use http::request::Parts;
use wrenn_api::id::TeamId;

use super::error::HttpError;
use crate::service::App;
use crate::service::error::ServiceError;

/// The cookie of a session.
pub(crate) const SESSION_COOKIE: &str = "__Host-wrenn_session";

/// The team that a request is from.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) TeamId);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, HttpError> {
        match caller(app, &parts.headers).await? {
            Some(team) => Ok(Self(team)),
            None => Err(ServiceError::Unauthorized.into()),
        }
    }
}

/// The team that a WebSocket is from; none where its first frame shall tell.
pub(crate) struct MaybeCaller(pub(crate) Option<TeamId>);

impl FromRequestParts<Arc<App>> for MaybeCaller {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, HttpError> {
        Ok(Self(caller(app, &parts.headers).await?))
    }
}

/// The team of a request's credential; none where it has no credential.
async fn caller(app: &App, headers: &HeaderMap) -> Result<Option<TeamId>, ServiceError> {
    if let Some(key) = headers.get("x-api-key") {
        let key = key.to_str().map_err(|_| ServiceError::Unauthorized)?;
        return app.team_of_key(key).await.map(Some);
    }
    if let Some(value) = headers.get(AUTHORIZATION) {
        let value = value.to_str().map_err(|_| ServiceError::Unauthorized)?;
        let token = value
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let token = token.ok_or(ServiceError::Unauthorized)?;
        return app.team_of_key(token).await.map(Some);
    }
    if let Some(session) = session_of(headers) {
        return app.team_of_session(&session).await.map(Some);
    }
    Ok(None)
}

fn session_of(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(name, _)| *name == SESSION_COOKIE)
        .map(|(_, value)| value.to_owned())
}
