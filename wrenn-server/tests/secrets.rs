//! Hazards 31 and 57: planted secrets are in no line of the log, no error and no event.
//!
//! A server in this process, whose log is captured, does everything that takes a secret, well
//! and badly; so does the program, as a process of its own, with its log at `debug`.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod program;

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt as _, StreamExt as _};
use program::ServerProcess;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use wrenn_sdk::{Client, CreateOptions, ProcessEvent};
use wrenn_testing::{FakeHost, Rpc, TestServer};

/// Values that are planted, and where each was.
#[derive(Default)]
struct Secrets(Vec<(&'static str, String)>);

impl Secrets {
    /// A new one.
    fn plant(&mut self, place: &'static str) -> String {
        let secret = format!("canary{:032x}", rand::random::<u128>());
        self.add(place, &secret);
        secret
    }

    fn add(&mut self, place: &'static str, secret: &str) {
        assert!(secret.len() >= 16, "{place} is too short to search for");
        self.0.push((place, secret.to_owned()));
        self.0.push((place, STANDARD.encode(secret)));
    }

    /// The first secret in a text: where it was planted, and the line that it is in.
    fn find<'a>(&self, text: &'a str) -> Option<(&'static str, &'a str)> {
        self.0.iter().find_map(|(place, secret)| {
            let at = text.find(secret.as_str())?;
            let line = text[..at].matches('\n').count();
            Some((*place, text.lines().nth(line).unwrap_or_default()))
        })
    }

    fn assert_absent(&self, text: &str, medium: &str) {
        if let Some((place, line)) = self.find(text) {
            panic!("the {place} is in the {medium}: {line}");
        }
    }
}

/// What a server writes to its log.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// That of this process, of all but the fake host and the client.
    fn capture() -> Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Self::default();
            let writer = log.clone();
            let filter = "debug,wrenn_server=trace,wrenn_testing=off,wrenn_sdk=off";
            tracing_subscriber::fmt()
                .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .init();
            log
        })
        .clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// A client that keeps every error it is answered.
struct Api {
    http: reqwest::Client,
    url: String,
    key: String,
    errors: String,
}

impl Api {
    fn new(url: String, key: &str) -> Self {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        Self {
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            url,
            key: key.to_owned(),
            errors: String::new(),
        }
    }

    async fn send(&mut self, method: Method, path: &str, body: Option<&Value>) -> StatusCode {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        request = request.header("x-api-key", &self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.keep(request).await
    }

    /// Sends a request, and keeps headers and body of an answer that is an error.
    async fn keep(&mut self, request: reqwest::RequestBuilder) -> StatusCode {
        let response = request.send().await.unwrap();
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            let headers = format!("{:?}\n", response.headers());
            self.errors.push_str(&headers);
            self.errors.push_str(&response.text().await.unwrap());
            self.errors.push('\n');
        }
        status
    }

    async fn refused(&mut self, method: Method, path: &str, body: &Value) {
        let status = self.send(method, path, Some(body)).await;
        assert!(status.is_client_error(), "{path} {body}: {status}");
    }

    /// Sends frames to a WebSocket, and keeps every text frame of the answer.
    async fn frames(&mut self, path: &str, frames: &[Value]) {
        let url = format!("{}{path}", self.url.replace("http://", "ws://"));
        let request = url.into_client_request().unwrap();
        let address = self.url.trim_start_matches("http://");
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut socket, _) = client_async(request, stream).await.unwrap();
        for frame in frames {
            socket.send(Message::text(frame.to_string())).await.unwrap();
        }
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message {
                self.errors.push_str(&text);
                self.errors.push('\n');
            }
        }
    }
}

/// Does everything that takes a secret, well and badly. Returns what errors and events said.
async fn use_secrets(
    secrets: &mut Secrets,
    url: String,
    key: &str,
    sdk: &Client,
    host: &FakeHost,
) -> (String, String) {
    secrets.add("API key", key);
    secrets.add("agent's token", host.token().unwrap());
    let env = secrets.plant("variable of a sandbox");
    let options = CreateOptions::new().name("subject").env("SECRET", &env);
    let mut sandbox = sdk.sandboxes().create(options).await.unwrap();
    let id = sandbox.id().to_string();
    let access_token = host.sandbox(&id).unwrap().access_token;
    secrets.add("access token", &access_token);

    let variable = secrets.plant("variable of a command");
    let input = secrets.plant("standard input");
    let argument = secrets.plant("argument");
    let command = sandbox
        .shell("cat; echo $SECRET $OTHER $0 >&2; exit 3")
        .env("OTHER", &variable)
        .stdin(&input);
    let result = command.await.unwrap();
    assert_eq!(result.stdout_text(), input);
    assert!(result.stderr_text().contains(&variable));
    let spawn = sandbox.spawn("sh", ["-c", "cat", &argument]);
    let mut process = spawn.env("OTHER", &variable).stdin().await.unwrap();
    process.write_stdin(input.clone()).await.unwrap();
    process.close_stdin().await.unwrap();
    while let Some(event) = process.next().await.unwrap() {
        if let ProcessEvent::Stdout(bytes) = event {
            assert_eq!(&bytes[..], input.as_bytes());
        }
    }

    let contents = secrets.plant("contents of a file");
    let files = sandbox.files();
    files.write("kept", contents.clone()).await.unwrap();
    assert_eq!(files.read_text("kept").await.unwrap(), contents);

    let mut api = Api::new(url, key);
    let path = |route: &str| format!("/v1/sandboxes/{id}/{route}");
    // Requests that cannot be used, with secrets where they do not belong.
    for body in [
        json!({"env": env}),
        json!({"env": [env]}),
        json!({"template": "base", "vcpus": env}),
        json!({"template": "no-such-template", "env": {"SECRET": env}}),
    ] {
        api.refused(Method::POST, "/v1/sandboxes", &body).await;
    }
    for body in [
        json!({"cmd": "true", "env": variable}),
        json!({"cmd": "true", "stdin": [input]}),
        json!({"cmd": "true", "stdin": format!("!{input}")}),
        json!({"cmd": "true", "timeout_sec": input}),
        json!({"cmd": "", "env": {"OTHER": variable}, "args": [argument]}),
        json!({"cmd": "cat", "cwd": "/no/such", "env": {"OTHER": variable}, "args": [argument]}),
        json!({"cmd": "cat", "user": "nobody-such", "env": {"OTHER": variable}}),
    ] {
        let status = api.send(Method::POST, &path("exec"), Some(&body)).await;
        assert!(!status.is_server_error(), "{body}: {status}");
    }
    let unwritable = format!("{}?path=/proc/nothing", path("files/stream/write"));
    let upload = api.http.post(format!("{}{unwritable}", api.url));
    let upload = upload.header("x-api-key", key).body(contents.clone());
    assert!(!api.keep(upload).await.is_success());
    let archive = api
        .http
        .put(format!("{}{}?path=a", api.url, path("files/archive")));
    let archive = archive.header("x-api-key", key).body(contents.repeat(40));
    assert!(!api.keep(archive).await.is_success());

    // Credentials where they do not belong, and wrong ones.
    api.refused(
        Method::GET,
        &format!("/v1/sandboxes?token={key}"),
        &json!({}),
    )
    .await;
    let wrong = format!("wrn_{:040x}", rand::random::<u128>());
    secrets.add("wrong API key", &wrong);
    let request = api.http.get(format!("{}/v1/sandboxes", api.url));
    let status = api.keep(request.bearer_auth(&wrong)).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let stream = path("exec/stream");
    for frames in [
        &[json!({"type": "auth", "token": wrong})][..],
        &[json!({"type": "auth", "token": [key]})],
        &[json!({"type": "auth", "token": key, "more": key})],
        &[
            json!({"type": "auth", "token": key}),
            json!({"type": "start", "cmd": "true", "env": variable}),
        ],
    ] {
        api.frames(&stream, frames).await;
    }

    // A host that fails, and one that is away.
    host.fault(Rpc::Exec).hang_up();
    let body = json!({"cmd": "true", "env": {"OTHER": variable}, "stdin": STANDARD.encode(&input)});
    let status = api.send(Method::POST, &path("exec"), Some(&body)).await;
    assert!(status.is_server_error(), "{status}");
    host.fault(Rpc::CreateSandbox).hang_up();
    let body = json!({"env": {"SECRET": env}});
    api.send(Method::POST, "/v1/sandboxes", Some(&body)).await;
    host.disconnect();
    let body = json!({"cmd": "true", "env": {"OTHER": variable}});
    let status = api.send(Method::POST, &path("exec"), Some(&body)).await;
    assert!(status.is_server_error(), "{status}");
    host.reconnect();

    sandbox.pause().await.unwrap();
    let files = path("files/write");
    let body = json!({"path": "x", "contents": contents});
    api.refused(Method::POST, &files, &body).await;
    sandbox.resume().await.unwrap();
    sandbox.destroy().await.unwrap();
    let events = events(&api, &id).await;
    (api.errors, events)
}

/// All events, up to the end of the sandbox.
async fn events(api: &Api, id: &str) -> String {
    let request = api.http.get(format!("{}/v1/events?after=0", api.url));
    let mut response = request.header("x-api-key", &api.key).send().await.unwrap();
    let mut text = String::new();
    let reading = async {
        let is_last = |line: &str| line.contains(id) && line.contains("\"stopped\"");
        while !text.lines().any(is_last) {
            let chunk = response.chunk().await.unwrap().unwrap();
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .expect("the events come");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_no_log_error_or_event() {
    let log = Log::capture();
    let server = TestServer::start().await.unwrap();
    let mut secrets = Secrets::default();
    let link = server.handle().unwrap().login_link();
    let (_, ticket) = link.split_once("#ticket=").unwrap();
    secrets.add("login ticket", ticket);
    let mut api = Api::new(server.url(), server.api_key());
    for body in [
        json!({"ticket": [ticket]}),
        json!({"ticket": ticket, "x": 1}),
    ] {
        api.refused(Method::POST, "/v1/auth/local", &body).await;
    }
    let login = format!("{}/v1/auth/local", server.url());
    let login = api.http.post(login).json(&json!({"ticket": ticket}));
    let answer = login.send().await.unwrap();
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    let (name, rest) = cookie.split_once('=').unwrap();
    let session = rest.split(';').next().unwrap();
    secrets.add("session cookie", session);
    let list = |cookie: String| {
        let request = api.http.get(format!("{}/v1/sandboxes", server.url()));
        request.header("cookie", cookie)
    };
    let (good, bad) = (
        list(format!("{name}={session}")),
        list(format!("{name}=x{session}")),
    );
    assert_eq!(api.keep(good).await, StatusCode::OK);
    assert_eq!(api.keep(bad).await, StatusCode::UNAUTHORIZED);
    let again = json!({"ticket": ticket});
    api.refused(Method::POST, "/v1/auth/local", &again).await;

    let sdk = server.sdk().unwrap();
    let (errors, events) = use_secrets(
        &mut secrets,
        server.url(),
        server.api_key(),
        &sdk,
        server.host(),
    )
    .await;
    secrets.assert_absent(&api.errors, "error of a login");
    secrets.assert_absent(&errors, "error");
    secrets.assert_absent(&events, "event");
    let log = log.text();
    assert!(log.contains("answered a request"), "the log is captured");
    secrets.assert_absent(&log, "log");
}

/// The search that the other tests rely on: it finds what is leaked on purpose, in the log that
/// they read, in each form that a secret takes there.
#[test]
fn leaked_secret_is_found() {
    let log = Log::capture();
    let mut secrets = Secrets::default();
    let kept = secrets.plant("secret that is kept");
    tracing::info!(target: "wrenn_server", kept_bytes = kept.len(), "kept a secret");
    assert_eq!(secrets.find(&log.text()), None);

    // As a server logs: in the text, in a field, in a span, in base64, at each level.
    type Leak = (&'static str, fn(&str));
    let leaks: [Leak; 6] = [
        (
            "text",
            |secret| tracing::info!(target: "wrenn_server", "sent {secret} on"),
        ),
        (
            "field",
            |secret| tracing::warn!(target: "wrenn_server", secret, "sent it on"),
        ),
        ("debug field", |secret| {
            let headers = [("x-api-key", secret)];
            tracing::debug!(target: "wrenn_server", ?headers, "sent it on");
        }),
        ("span", |secret| {
            let span = tracing::error_span!(target: "wrenn_server", "request", secret);
            span.in_scope(|| tracing::trace!(target: "wrenn_server", "sent it on"));
        }),
        ("base64", |secret| {
            let input = STANDARD.encode(secret);
            tracing::info!(target: "wrenn_server", input, "sent it on");
        }),
        (
            "library",
            |secret| tracing::debug!(target: "hyper", "read {secret}"),
        ),
    ];
    for (place, leak) in leaks {
        let mut secrets = Secrets::default();
        let secret = secrets.plant(place);
        leak(&secret);
        let text = log.text();
        let (found, line) = secrets
            .find(&text)
            .unwrap_or_else(|| panic!("the {place} is not found"));
        assert_eq!(found, place);
        assert!(
            line.contains(if place == "library" { "read" } else { "sent" }),
            "{line}"
        );
    }
    let leaked = secrets.plant("secret that is leaked");
    let answer = json!({"error": {"message": format!("bad {leaked}")}}).to_string();
    let refused = std::panic::catch_unwind(|| secrets.assert_absent(&answer, "error"));
    let message = *refused.unwrap_err().downcast::<String>().unwrap();
    assert!(
        message.starts_with("the secret that is leaked is in the error"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn program_logs_no_secret() {
    let server = ServerProcess::start("debug").await;
    let mut secrets = Secrets::default();
    let url = format!("http://{}", server.address);
    let (errors, events) = use_secrets(
        &mut secrets,
        url,
        &server.api_key,
        &server.sdk(),
        &server.host,
    )
    .await;
    secrets.assert_absent(&errors, "error");
    secrets.assert_absent(&events, "event");
    let log = server.log();
    assert!(log.contains("DEBUG"), "the log is that of debug:\n{log}");
    secrets.assert_absent(&log, "log");
}
