//! A daemon for a test, and clients for it.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    unused_imports,
    unused_macros,
    reason = "every test takes what it needs, and its failure is a panic"
)]

pub mod room;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use wrenn_envd::auth::AccessToken;
use wrenn_envd::guest::{Guest, Settings};
use wrenn_envd::process::GracePeriods;
use wrenn_envd::server::Daemon;
use wrenn_proto::connectrpc::client::{ClientConfig, HttpClient};
use wrenn_proto::filesystem::FilesystemClient;
use wrenn_proto::process::process_event::{EndEvent, Event, data_event::Output};
use wrenn_proto::process::{
    ProcessClient, ProcessConfig, ProcessSelector, StartRequest, process_selector::Selector,
};

/// Longer than anything here takes on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub type HttpBody = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A daemon on a thread, and in a [room](room), of its own.
pub struct TestDaemon {
    pub address: SocketAddr,
    pub guest: Arc<Guest>,
    serving: tokio::task::JoinHandle<()>,
    token: Option<String>,
}

/// Who runs this test: tests pass as root and as anybody.
pub fn own_user() -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd
        .lines()
        .find(|line| line.split(':').nth(2) == Some(&uid))
        .unwrap();
    line.split(':').next().unwrap().to_owned()
}

impl TestDaemon {
    pub async fn start() -> Self {
        Self::start_as(None, GracePeriods::default()).await
    }

    pub async fn start_with(token: &str) -> Self {
        Self::start_as(Some(token), GracePeriods::default()).await
    }

    /// One that waits so long for processes and their clients.
    pub async fn with_grace(grace: GracePeriods) -> Self {
        Self::start_as(None, grace).await
    }

    async fn start_as(token: Option<&str>, grace: GracePeriods) -> Self {
        let guest = Guest::new(
            Settings {
                access_token: token.and_then(AccessToken::new),
                env: Default::default(),
                default_user: own_user(),
                default_workdir: Some("/".to_owned()),
            },
            None,
            grace,
        );
        let (bound, listens) = tokio::sync::oneshot::channel();
        let served = guest.clone();
        let serving = tokio::task::spawn_blocking(move || {
            let serve = move || {
                room::enter().unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let address = "127.0.0.1:0".parse().unwrap();
                    let daemon = Daemon::bind(address, served).await.unwrap();
                    bound.send(daemon.local_addr().unwrap()).unwrap();
                    daemon.serve().await;
                });
            };
            std::thread::spawn(serve).join().unwrap();
        });
        let address = listens.await.unwrap();
        Self {
            address,
            guest,
            serving,
            token: token.map(str::to_owned),
        }
    }

    /// Stops it and waits until everything of it has ended.
    pub async fn stop(mut self) {
        self.guest.shutdown.cancel();
        tokio::time::timeout(PATIENCE, &mut self.serving)
            .await
            .unwrap()
            .unwrap();
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new(format!("http://{}", self.address).parse().unwrap());
        if let Some(token) = &self.token {
            config = config.with_default_header("x-access-token", token.as_str());
        }
        config
    }

    pub fn processes(&self) -> ProcessClient<HttpClient> {
        ProcessClient::new(HttpClient::plaintext(), self.config())
    }

    /// The codec that other clients use.
    pub fn json_processes(&self) -> ProcessClient<HttpClient> {
        ProcessClient::new(HttpClient::plaintext(), self.config().json())
    }

    pub fn files(&self) -> FilesystemClient<HttpClient> {
        FilesystemClient::new(HttpClient::plaintext(), self.config())
    }

    pub async fn http(&self, request: Request<HttpBody>) -> (StatusCode, HeaderMap, Bytes) {
        http(self.address, request).await
    }
}

/// A test that fails would wait for its daemon for ever.
impl Drop for TestDaemon {
    fn drop(&mut self) {
        self.guest.shutdown.cancel();
    }
}

/// One request on a connection of its own.
pub async fn http(
    address: SocketAddr,
    request: Request<HttpBody>,
) -> (StatusCode, HeaderMap, Bytes) {
    let (parts, mut body) = open(address, request).await;
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.unwrap().into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    (parts.status, parts.headers, bytes.into())
}

/// The answer's head, and its body to be read at leisure.
pub async fn open(
    address: SocketAddr,
    mut request: Request<HttpBody>,
) -> (http::response::Parts, hyper::body::Incoming) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    request
        .headers_mut()
        .entry("host")
        .or_insert("localhost".parse().unwrap());
    sender.send_request(request).await.unwrap().into_parts()
}

pub fn body(bytes: impl Into<Bytes>) -> HttpBody {
    http_body_util::Full::new(bytes.into()).boxed_unsync()
}

pub fn get(uri: &str) -> Request<HttpBody> {
    Request::get(uri).body(body("")).unwrap()
}

/// `sh -c SCRIPT`.
pub fn shell(script: &str) -> StartRequest {
    StartRequest {
        process: ProcessConfig {
            cmd: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), script.to_owned()],
            ..Default::default()
        }
        .into(),
        stdin: Some(false),
        ..Default::default()
    }
}

pub fn selector(pid: u32) -> ProcessSelector {
    ProcessSelector {
        selector: Some(Selector::Pid(pid)),
    }
}

/// Everything that one stream told.
#[derive(Debug, Default)]
pub struct Told {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    pub ends: Vec<EndEvent>,
    pub largest: usize,
}

impl Told {
    pub fn take(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Start(start)) => self.pid = start.pid,
            Some(Event::Data(data)) => {
                let (to, bytes) = match data.output.unwrap() {
                    Output::Stdout(bytes) => (&mut self.stdout, bytes),
                    Output::Stderr(bytes) => (&mut self.stderr, bytes),
                    Output::Pty(bytes) => (&mut self.pty, bytes),
                };
                self.largest = self.largest.max(bytes.len());
                to.extend_from_slice(&bytes);
            }
            Some(Event::End(end)) => self.ends.push(*end),
            Some(Event::Keepalive(_)) | None => {}
        }
    }

    pub fn exit_code(&self) -> i32 {
        assert_eq!(self.ends.len(), 1, "exactly one end: {self:?}");
        self.ends[0].exit_code
    }
}

/// Reads a Start stream to its end.
macro_rules! follow {
    ($stream:expr) => {{
        let mut told = common::Told::default();
        let mut stream = $stream;
        loop {
            match stream.message().await {
                Ok(Some(message)) => told.take(
                    message
                        .to_owned_message()
                        .event
                        .into_option()
                        .and_then(|e| e.event),
                ),
                Ok(None) => break Ok(told),
                Err(error) => break Err((told, error)),
            }
        }
    }};
}
pub(crate) use follow;

/// Polls a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, wait).await.is_ok(),
        "never happened: {what}"
    );
}

/// Whether a process is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit_once(')')
                .map(|(_, rest)| !rest.trim_start().starts_with('Z'))
        })
        .unwrap_or(false)
}
