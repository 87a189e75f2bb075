//! HTTP/1.1 by hand, so that a test can hang up where it wants, and ways to look at rows.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wrenn_testing::{Settings, TestServer};

/// Longer than anything here takes on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server that soon looks at its hosts, and takes operations that it did not begin for
/// interrupted ones.
pub(crate) async fn start_settling_soon() -> TestServer {
    let mut settings = Settings::default();
    settings.reconcile_interval = Duration::from_millis(20);
    settings.interrupted_after = Duration::from_millis(200);
    let server = TestServer::builder().settings(settings);
    server.start().await.unwrap()
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: &'static str,
    path: String,
    body: Option<Value>,
    headers: Vec<(&'static str, String)>,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Value,
}

impl Request {
    pub(crate) fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            body: None,
            headers: Vec::new(),
        }
    }

    pub(crate) fn post(path: impl Into<String>, body: Value) -> Self {
        Self {
            body: Some(body),
            ..Self::new("POST", path)
        }
    }

    pub(crate) fn create() -> Self {
        Self::post("/v1/sandboxes", json!({"template": "base"}))
    }

    pub(crate) fn delete(id: &str) -> Self {
        Self::new("DELETE", format!("/v1/sandboxes/{id}"))
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn bytes(&self, server: &TestServer) -> Vec<u8> {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {}\r\nConnection: close\r\n",
            self.method,
            self.path,
            server.address(),
            server.api_key()
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let body = self.body.as_ref().map(Value::to_string);
        if let Some(body) = &body {
            let length = body.len();
            head.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {length}\r\n"
            ));
        }
        head.push_str("\r\n");
        head.push_str(&body.unwrap_or_default());
        head.into_bytes()
    }

    /// Sends it, and gives the connection on which it is going to be answered. Dropping that
    /// hangs up.
    pub(crate) async fn begin(&self, server: &TestServer) -> TcpStream {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(&self.bytes(server)).await.unwrap();
        stream
    }

    /// Sends it, and reads the answer.
    pub(crate) async fn send(&self, server: &TestServer) -> Answer {
        read(self.begin(server).await).await
    }
}

pub(crate) async fn read(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (headers, body) = text.split_once("\r\n\r\n").unwrap();
    let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        headers: headers.to_ascii_lowercase(),
        body: serde_json::from_str(body).unwrap_or(Value::Null),
    }
}

impl Answer {
    pub(crate) fn id(&self) -> String {
        let id = self.body["id"].as_str();
        id.unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    pub(crate) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

/// Creates a sandbox that runs.
pub(crate) async fn create(server: &TestServer) -> String {
    let answer = Request::create().send(server).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.id()
}

/// The status of a row; none where there is no such row.
pub(crate) async fn status(server: &TestServer, id: &str) -> Option<String> {
    let request = Request::new("GET", format!("/v1/sandboxes/{id}"));
    let answer = request.send(server).await;
    let status = answer.body["status"].as_str();
    assert!(matches!(answer.status, 200 | 404), "{answer:?}");
    status.map(str::to_owned)
}

/// Rows of all statuses: id and status.
pub(crate) async fn rows(server: &TestServer) -> Vec<(String, String)> {
    let statuses = "pending,running,pausing,paused,resuming,error,missing,stopped";
    let request = Request::new("GET", format!("/v1/sandboxes?status={statuses}&limit=100"));
    let answer = request.send(server).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let items = answer.body["items"].as_array().unwrap().iter();
    items
        .map(|item| {
            let text = |name: &str| item[name].as_str().unwrap().to_owned();
            (text("id"), text("status"))
        })
        .collect()
}

/// Polls until the row has this status.
pub(crate) async fn settles(server: &TestServer, id: &str, wanted: &str) {
    let since = Instant::now();
    loop {
        let status = status(server, id).await;
        if status.as_deref() == Some(wanted) {
            return;
        }
        assert!(
            since.elapsed() < PATIENCE,
            "{id} is {status:?} and not {wanted}; its host has {:?}",
            server.host().state(id)
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the host was listed so many times more, each list settled but the last one.
pub(crate) async fn rounds(server: &TestServer, count: usize) {
    let rpc = wrenn_testing::Rpc::ListSandboxes;
    let seen = server.host().calls(rpc);
    server.host().wait_for_calls(rpc, seen + count + 1).await;
}
