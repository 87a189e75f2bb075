//! What the server says about itself, and the login by a ticket.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::header::SET_COOKIE;
use http::{HeaderValue, StatusCode};
use wrenn_api::error::ErrorBody;
use wrenn_api::exec::MAX_EXEC_BYTES;
use wrenn_api::page::MAX_LIMIT;
use wrenn_api::sandbox::{MAX_FORK_COUNT, MAX_METADATA_BYTES};
use wrenn_api::server::{LocalLogin, ServerInfo, ServerLimits};

use super::authentication::SESSION_COOKIE;
use super::error::HttpError;
use super::extract::Body;
use crate::service::App;
use crate::service::access::SESSION_TIME;

/// What this server is
#[utoipa::path(
    get, path = "/v1/server", tag = "server", security(()),
    responses((status = 200, body = ServerInfo))
)]
pub(crate) async fn server_info(State(app): State<Arc<App>>) -> Json<ServerInfo> {
    Json(ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mode: app.settings.mode.clone(),
        sign_up: "closed".to_owned(),
        domain: String::new(),
        features: ["exec", "files", "snapshots", "fork", "events"]
            .map(str::to_owned)
            .to_vec(),
        limits: ServerLimits {
            whole_body_bytes: MAX_EXEC_BYTES as u64,
            metadata_bytes: MAX_METADATA_BYTES as u64,
            fork_count: MAX_FORK_COUNT,
            page_items: MAX_LIMIT,
        },
    })
}

/// Log in with a ticket
///
/// The ticket stands in the link that `wrenn up` prints, and works once. The answer sets the
/// cookie of a session.
#[utoipa::path(
    post, path = "/v1/auth/local", tag = "server", security(()),
    request_body = LocalLogin,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn log_in_locally(
    State(app): State<Arc<App>>,
    Body(body, _): Body<LocalLogin>,
) -> Result<Response, HttpError> {
    let secret = app.log_in_locally(&body.ticket).await?;
    let cookie = format!(
        "{SESSION_COOKIE}={secret}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={}",
        SESSION_TIME.as_secs()
    );
    let mut response = StatusCode::NO_CONTENT.into_response();
    let mut value = HeaderValue::from_str(&cookie)
        .map_err(|_| HttpError::invalid("the session has no valid secret"))?;
    value.set_sensitive(true);
    response.headers_mut().insert(SET_COOKIE, value);
    Ok(response)
}
