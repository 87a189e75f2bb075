//! What every request passes: its Host and Origin are checked, it gets an id, and the access
//! log gets a line without its query.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::{HOST, HeaderName, ORIGIN, RETRY_AFTER, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Uri};
use wrenn_api::error::ErrorCode;

use super::error::{HttpError, SHOULD_RETRY};
use super::idempotency;
use crate::service::App;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static CURRENT_REQUEST_ID: String;
}

/// The id of the request that is being answered; empty outside of one.
pub(crate) fn request_id() -> String {
    CURRENT_REQUEST_ID
        .try_with(Clone::clone)
        .unwrap_or_default()
}

pub(crate) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = format!("req_{}", crate::store::random_secret(8));
    let begun = Instant::now();
    let method = request.method().clone();
    let repeatable = is_repeatable(&method, request.headers());
    // The pattern and not the path: logs must not grow with what callers invent.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("-", MatchedPath::as_str)
        .to_owned();
    let scope_id = id.clone();
    let mut response = CURRENT_REQUEST_ID
        .scope(scope_id, async move {
            match check(&app, &request) {
                Ok(()) => next.run(request).await,
                Err(error) => error.into_response(),
            }
        })
        .await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let code = response.extensions().get::<ErrorCode>().copied();
    if !repeatable && code.is_some_and(ErrorCode::is_outcome_unknown) {
        // A command would run twice, and a file be moved twice.
        let headers = response.headers_mut();
        headers.remove(RETRY_AFTER);
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    tracing::info!(
        target: "wrenn_server::access",
        request_id = %id,
        %method,
        route,
        status = response.status().as_u16(),
        code = code.map(ErrorCode::as_str),
        ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "answered a request"
    );
    response
}

/// Whether a request does the same when it is sent twice.
fn is_repeatable(method: &Method, headers: &HeaderMap) -> bool {
    method.is_idempotent() || headers.contains_key(idempotency::HEADER)
}

fn check(app: &App, request: &Request) -> Result<(), HttpError> {
    let host = host_of(request.headers(), request.uri());
    let allowed = host.as_deref().is_some_and(|host| {
        is_loopback(host)
            || app
                .settings
                .allowed_hosts
                .iter()
                .any(|allowed| name_of(host).eq_ignore_ascii_case(allowed))
    });
    if !allowed {
        return Err(HttpError::new(
            ErrorCode::Forbidden,
            format!(
                "this server does not answer under the name '{}'; add it to WRENN_ALLOWED_HOSTS",
                wrenn_api::error::shorten(&host.unwrap_or_default())
            ),
        ));
    }
    let headers = request.headers();
    let unsafe_method = !matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    if (unsafe_method || headers.contains_key(UPGRADE))
        && let Some(origin) = headers.get(ORIGIN)
        && !is_own_origin(origin, host.as_deref().unwrap_or_default())
    {
        return Err(HttpError::new(
            ErrorCode::Forbidden,
            "requests of pages of another origin are refused",
        ));
    }
    Ok(())
}

fn host_of(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    // HTTP/2 has it in the URI.
    if let Some(authority) = uri.authority() {
        return Some(authority.as_str().to_owned());
    }
    headers.get(HOST)?.to_str().ok().map(str::to_owned)
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    if let Some(end) = host.strip_prefix('[').and_then(|rest| rest.find(']')) {
        return &host[..end + 2];
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn is_loopback(host: &str) -> bool {
    let name = name_of(host);
    name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]"
}

fn is_own_origin(origin: &HeaderValue, host: &str) -> bool {
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let rest = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    rest.is_some_and(|rest| rest.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_are_known_with_and_without_port() {
        for host in [
            "localhost",
            "LOCALHOST:7400",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:7400",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "0.0.0.0",
            "127.0.0.1.evil.example",
            "evil.example",
            "localhost.evil",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn foreign_origins_are_refused() {
        let own = |origin: &'static str| {
            is_own_origin(&HeaderValue::from_static(origin), "127.0.0.1:7400")
        };
        assert!(own("http://127.0.0.1:7400"));
        for origin in [
            "null",
            "http://127.0.0.1:7401",
            "http://evil.example",
            "file://",
            "",
        ] {
            assert!(!own(origin), "{origin}");
        }
    }
}
