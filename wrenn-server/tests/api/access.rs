//! Who may ask: keys, sessions, Host and Origin.

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::Api;

/// Routes that the description has and that want no credential.
const OPEN: &[&str] = &["GET /v1/server", "POST /v1/auth/local"];

#[tokio::test(flavor = "multi_thread")]
async fn every_described_route_wants_a_credential() {
    let api = Api::start().await;
    let description = api
        .send(api.anonymous(Method::GET, "/openapi.json"))
        .await
        .ok(200);
    let mut asked = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let name = format!("{} {path}", method.to_uppercase());
            if OPEN.contains(&name.as_str()) {
                continue;
            }
            let path = path
                .replace("{id}", "sbaaaaaaaaaaaaaaaaaaaa")
                .replace("{process}", "1")
                .replace("{name}", "base");
            let method: Method = method.to_uppercase().parse().unwrap();
            for key in [
                None,
                Some(""),
                Some("wrn_0"),
                Some(&*format!("wrn_{}", "0".repeat(40))),
            ] {
                let mut request = api.anonymous(method.clone(), &path);
                if let Some(key) = key {
                    request = request.header("x-api-key", key);
                }
                let websocket = path.ends_with("/stream") || path.ends_with("/watch");
                let answer = api.send(request.body("{}")).await;
                // A socket may tell in its first frame who it is, so it is refused as no socket.
                if websocket && key.is_none() {
                    assert!(answer.status.is_client_error(), "{name}: {}", answer.text());
                } else {
                    answer.refused(401, "unauthorized", "send an API key");
                }
                asked += 1;
            }
        }
    }
    assert!(asked > 120, "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_works_as_bearer_token() {
    let api = Api::start().await;
    let request = api.anonymous(Method::GET, "/v1/sandboxes");
    api.send(request.bearer_auth(api.server.api_key()))
        .await
        .ok(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn login_link_works_once() {
    let api = Api::start().await;
    let link = api.server.handle().unwrap().login_link();
    let ticket = link.split("#ticket=").nth(1).unwrap();
    let log_in = || {
        let request = api.anonymous(Method::POST, "/v1/auth/local");
        api.send(request.json(&json!({ "ticket": ticket })))
    };
    let first = log_in().await;
    first.ok(204);
    let cookie = first.headers["set-cookie"].to_str().unwrap();
    for attribute in [
        "__Host-wrenn_session=",
        "HttpOnly",
        "SameSite=Lax",
        "Secure",
        "Path=/",
    ] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let session = cookie.split(';').next().unwrap();
    let request = api.anonymous(Method::GET, "/v1/sandboxes");
    api.send(request.header("cookie", session)).await.ok(200);
    log_in().await.refused(401, "unauthorized", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_host_names_and_origins_are_refused() {
    let api = Api::start().await;
    let port = api.server.address().port();
    for host in ["evil.example", "0.0.0.0", "127.0.0.1.evil.example", ""] {
        let answer = raw(
            &api,
            &format!("GET /v1/server HTTP/1.1\r\nhost: {host}\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
    }
    let answer = raw(&api, "GET /v1/server HTTP/1.1\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "without one: {answer}");
    for host in [
        "localhost".to_owned(),
        format!("127.0.0.1:{port}"),
        "[::1]:1".to_owned(),
    ] {
        let answer = raw(
            &api,
            &format!("GET /v1/server HTTP/1.1\r\nhost: {host}\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    for origin in ["null", "http://evil.example", "http://127.0.0.1:1"] {
        let request = api
            .request(Method::POST, "/v1/sandboxes")
            .header("origin", origin);
        api.send(request.body("{}"))
            .await
            .refused(403, "forbidden", "another origin");
        let upgrade = format!(
            "GET /v1/events HTTP/1.1\r\nhost: localhost\r\norigin: {origin}\r\n\
             connection: upgrade\r\nupgrade: websocket\r\n"
        );
        let answer = raw(&api, &upgrade).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{origin}: {answer}");
    }
    let own = api.server.url();
    let request = api
        .request(Method::POST, "/v1/sandboxes")
        .header("origin", own);
    api.send(request.body("{}")).await.ok(201);
}

/// Sends the head of a request, and gives the beginning of the answer.
async fn raw(api: &Api, head: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(api.server.address())
        .await
        .unwrap();
    let request = format!("{head}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}
