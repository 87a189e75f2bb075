//! Pages without a credential: health, the API's description, its documentation, the test page.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{Html, IntoResponse as _, Response};
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};

use super::openapi;
use crate::service::App;

const TEST_PAGE: &str = include_str!("test.html");
/// Scripts and styles of the page itself, and nothing of anybody else.
const TEST_PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
    style-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'; \
    base-uri 'none'; form-action 'none'";

pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the database takes writes.
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Response {
    match app.store.probe(&app.default_team).await {
        Ok(()) => "ok\n".into_response(),
        Err(error) => {
            tracing::error!(%error, "failed to write to the database");
            let text = "the database takes no writes\n";
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

pub(crate) async fn openapi_yaml() -> Response {
    described("application/yaml", openapi::yaml())
}

pub(crate) async fn openapi_json() -> Response {
    described("application/json", openapi::json())
}

fn described(kind: &'static str, text: String) -> Response {
    let mut response = text.into_response();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(crate) async fn test_page() -> Response {
    let mut response = Html(TEST_PAGE).into_response();
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(TEST_PAGE_POLICY),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
