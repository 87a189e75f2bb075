//! Errors and retries.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::net::TcpListener;
use wrenn_api::error::ErrorCode;
use wrenn_api::id::SandboxId;
use wrenn_sdk::{Client, Error, NO_ARGS};

use crate::server::{KEY, sandbox, serve, serve_sandbox};

fn error(status: u16, code: &str, headers: &[(&'static str, &'static str)]) -> Response {
    let body = json!({ "error": {
        "code": code, "message": "the sandbox is paused; resume it first",
        "request_id": "rq1", "details": { "status": "paused" },
    } });
    let mut response = (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

#[tokio::test]
async fn create_keeps_one_key_over_attempts() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&keys);
    let create = move |headers: HeaderMap| async move {
        assert_eq!(headers["x-api-key"], KEY);
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        let mut seen = seen.lock().unwrap();
        seen.push(key);
        match seen.len() {
            1 => error(503, "host_full", &[("retry-after", "0")]),
            2 => error(
                409,
                "idempotency_in_progress",
                &[("retry-after", "0"), ("should-retry", "true")],
            ),
            _ => axum::Json(sandbox(&SandboxId::random())).into_response(),
        }
    };
    let client = serve(Router::new().route("/v1/sandboxes", post(create))).await;
    client.sandboxes().create("base").await.unwrap();
    client.sandboxes().create("base").await.unwrap();
    let keys = keys.lock().unwrap();
    assert_eq!(keys.len(), 4);
    assert_eq!(keys[0], keys[1]);
    assert_eq!(keys[0], keys[2]);
    assert_ne!(keys[0], keys[3]);
}

#[tokio::test]
async fn exec_is_repeated_only_when_told() {
    for (told, wanted) in [
        (&[][..], 1),
        (&[("should-retry", "true"), ("retry-after", "0")], 4),
    ] {
        let attempts = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&attempts);
        let exec = move || async move {
            *counted.lock().unwrap() += 1;
            error(503, "host_unavailable", told)
        };
        let sandbox =
            serve_sandbox(Router::new().route("/v1/sandboxes/{id}/exec", post(exec))).await;
        let failed = sandbox.exec("true", NO_ARGS).await.unwrap_err();
        assert_eq!(failed.code(), Some(ErrorCode::HostUnavailable));
        assert_eq!(*attempts.lock().unwrap(), wanted);
    }
}

#[tokio::test]
async fn api_error_keeps_code_details_and_request() {
    let pause = || async { error(409, "invalid_state", &[]) };
    let mut sandbox =
        serve_sandbox(Router::new().route("/v1/sandboxes/{id}/pause", post(pause))).await;
    let failed = sandbox.pause().await.unwrap_err();
    assert!(failed.is_invalid_state());
    assert_eq!(failed.detail("status").unwrap(), "paused");
    assert_eq!(failed.request_id(), Some("rq1"));
    assert_eq!(
        failed.to_string(),
        "the sandbox is paused; resume it first (request rq1)"
    );
}

#[tokio::test]
async fn absent_server_is_named_with_its_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::builder().url(&url).build().unwrap();
    let began = Instant::now();
    let failed = client.server_info().await.unwrap_err();
    assert!(matches!(&failed, Error::Connect { .. }), "{failed:?}");
    assert_eq!(
        failed.to_string(),
        format!("no server answers at {url}; `wrenn up` starts one")
    );
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn foreign_answers_are_told_apart() {
    let routes = Router::new()
        .route("/v1/server", get(|| async { Html("<h1>It works!</h1>") }))
        .route(
            "/v1/templates/{name}",
            get(|| async { (StatusCode::BAD_GATEWAY, "<h1>\u{1b}[31mnginx</h1>") }),
        );
    let client = serve(routes).await;
    let failed = client.server_info().await.unwrap_err();
    assert!(matches!(failed, Error::Protocol { .. }), "{failed:?}");
    let failed = client.templates().get("base").await.unwrap_err();
    assert!(failed.to_string().contains("502 Bad Gateway"), "{failed}");
}

#[tokio::test]
async fn redirect_does_not_take_key_elsewhere() {
    let routes = Router::new().route(
        "/v1/server",
        get(|| async { Redirect::temporary("http://127.0.0.1:1/steal") }),
    );
    let failed = serve(routes).await.server_info().await.unwrap_err();
    assert!(
        matches!(failed, Error::Api { status: 307, .. }),
        "{failed:?}"
    );
}

#[tokio::test]
async fn pages_are_followed_to_their_end() {
    use axum::extract::Query;
    use std::collections::HashMap;
    let list = |Query(query): Query<HashMap<String, String>>| async move {
        let template = |name: &str| json!({ "name": name, "type": "image" });
        axum::Json(match query.get("cursor").map(String::as_str) {
            None => json!({ "items": [template("a"), template("b")], "next_cursor": "1" }),
            Some("1") => json!({ "items": [], "next_cursor": "2" }),
            Some(_) => json!({ "items": [template("c")], "next_cursor": null }),
        })
    };
    let client = serve(Router::new().route("/v1/templates", get(list))).await;
    let all = client.templates().list().all().await.unwrap();
    let names: Vec<_> = all
        .iter()
        .map(wrenn_api::template::Template::reference)
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn events_go_on_after_broken_connection() {
    use axum::body::Body;
    let events = |headers: HeaderMap| async move {
        let last: u64 = headers
            .get("last-event-id")
            .map_or(0, |id| id.to_str().unwrap().parse().unwrap());
        let text = format!(
            "id: {0}\ndata: {{\"seq\":{0},\"type\":\"resync\",\"at\":\"2026-01-02T03:04:05Z\"}}\n\n",
            last + 1
        );
        ([("content-type", "text/event-stream")], Body::from(text)).into_response()
    };
    let client = serve(Router::new().route("/v1/events", get(events))).await;
    let mut events = client.events();
    for seq in 1..4 {
        assert_eq!(events.next().await.unwrap().seq, seq);
    }
}
