//! A client that sends what it is told, and a server for it.

use std::sync::OnceLock;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use wrenn_testing::TestServer;

/// A server, and a plain HTTP client for it.
pub(crate) struct Api {
    pub(crate) server: TestServer,
    http: reqwest::Client,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&self.body));
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts a success, and gives its JSON.
    #[track_caller]
    pub(crate) fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        if self.body.is_empty() {
            return Value::Null;
        }
        self.json()
    }

    /// Asserts an error with this code, whose message has these words.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str, words: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        let body = self.json();
        let error = &body["error"];
        assert_eq!(error["code"], code, "{body}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert!(message.len() < 700, "{message}");
        assert!(
            error["request_id"].as_str().unwrap().starts_with("req_"),
            "{body}"
        );
    }
}

/// A client without TLS: the tests talk to loopback.
fn plain() -> reqwest::Client {
    static CLIENT: OnceLock<()> = OnceLock::new();
    CLIENT.get_or_init(|| {
        // reqwest wants a provider even for plain HTTP.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
    });
    reqwest::Client::builder().no_proxy().build().unwrap()
}

impl Api {
    pub(crate) async fn start() -> Self {
        Self::of(TestServer::start().await.unwrap())
    }

    pub(crate) fn of(server: TestServer) -> Self {
        Self {
            server,
            http: plain(),
        }
    }

    /// A request with the key of the server.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path)
            .header("x-api-key", self.server.api_key())
    }

    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.server.url()))
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.unwrap().to_vec();
        Answer {
            status,
            headers,
            body,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, path).json(&body))
            .await
    }

    /// The id of a new sandbox.
    pub(crate) async fn create(&self) -> String {
        let created = self.post("/v1/sandboxes", json!({})).await.ok(201);
        created["id"].as_str().unwrap().to_owned()
    }
}
