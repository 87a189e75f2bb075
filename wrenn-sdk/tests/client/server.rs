//! A server of a few routes.

use axum::Router;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wrenn_api::id::SandboxId;
use wrenn_sdk::{Client, Sandbox};

pub(crate) const KEY: &str = "wrn_0123456789abcdef0123456789abcdef01234567";

/// Serves the routes until the test ends, and gives a client for them.
pub(crate) async fn serve(routes: Router) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Client::builder().url(url).key(KEY).build().unwrap()
}

/// Serves a sandbox with more routes.
pub(crate) async fn serve_sandbox(routes: Router) -> Sandbox {
    let id = SandboxId::random();
    let body = sandbox(&id);
    let route = axum::routing::get(move || async move { axum::Json(body) });
    let client = serve(routes.route("/v1/sandboxes/{id}", route)).await;
    client.sandboxes().get(id.as_str()).await.unwrap()
}

pub(crate) fn sandbox(id: &SandboxId) -> Value {
    json!({
        "id": id, "status": "running", "template": "base", "vcpus": 1, "memory_mb": 512,
        "timeout_sec": 0, "on_end": "pause", "metadata": {},
        "network": { "allow_internet": true, "allow": [], "deny": [] },
        "ports": { "public": false }, "generation": 1, "source": { "template": "base" },
        "created_at": "2026-01-02T03:04:05Z", "a_field_of_a_newer_server": true,
    })
}
