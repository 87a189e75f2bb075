//! The agent over a real socket, on a host that cannot create sandboxes: what it answers
//! before any guest is asked.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wrenn_agent::agent::{Agent, StartError};
use wrenn_agent::config::{Action, Config};
use wrenn_proto::connectrpc::client::{CallOptions, ClientConfig, HttpClient};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::*;
use wrenn_proto::reason;

const ID: &str = "sbaaaaaaaaaaaaaaaaaaaa";

fn config(root: &Path, more: &[&str]) -> Config {
    let root = root.to_str().unwrap();
    let mut first = vec!["wrenn-agent", "--root", root];
    if !more.contains(&"--listen") {
        first.extend(["--listen", "127.0.0.1:0"]);
    }
    let arguments = first.iter().chain(more).map(OsString::from);
    match Config::parse(arguments).unwrap() {
        Action::Run(config) => *config,
        Action::Show(_) => panic!("it shall run"),
    }
}

struct Stage {
    agent: Agent,
    client: HostAgentClient<HttpClient>,
    root: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Self {
        Self::with(&[], HttpClient::plaintext_http2_only()).await
    }

    async fn with(more: &[&str], transport: HttpClient) -> Self {
        let root = tempfile::tempdir().unwrap();
        let agent = Agent::start_without_host(config(root.path(), more))
            .await
            .unwrap();
        let uri = format!("http://127.0.0.1:{}", agent.address().port());
        let uri = uri.parse().unwrap();
        let bearer = format!("Bearer {}", agent.token().reveal());
        let config = ClientConfig::new(uri)
            .with_default_max_message_size(32 << 20)
            .with_default_header("authorization", bearer);
        Self {
            client: HostAgentClient::new(transport, config),
            agent,
            root,
        }
    }
}

impl Stage {
    /// The header with the token, and its line end.
    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.agent.token().reveal())
    }
}

fn reason_of(error: &ConnectError) -> Option<Reason> {
    reason::of(error)?.reason.as_known()
}

fn refused<T>(result: Result<T, ConnectError>, code: ErrorCode, words: &str) {
    let error = match result {
        Ok(_) => panic!("it is answered, and not refused with '{words}'"),
        Err(error) => error,
    };
    assert_eq!(error.code, code, "{error}");
    assert!(reason_of(&error).is_some(), "it has no reason: {error}");
    let message = error.message.clone().unwrap_or_default();
    assert!(message.contains(words), "{message}");
}

fn create(id: &str, template: &str) -> CreateSandboxRequest {
    CreateSandboxRequest {
        id: id.to_owned(),
        template: template.to_owned(),
        ..CreateSandboxRequest::default()
    }
}

/// One plain request, as text; the answer with its head.
async fn plain(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    get_with(address, path, "Host: localhost\r\n").await
}

async fn get_with(address: SocketAddr, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    plain(address, &request).await
}

/// An RPC with an empty JSON message; `headers` each with its line end.
async fn post(address: SocketAddr, method: &str, headers: &str) -> String {
    let request = format!(
        "POST /hostagent.v1.HostAgent/{method} HTTP/1.1\r\n{headers}\
         Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    plain(address, &request).await
}

/// Names of all RPCs, out of the .proto file itself.
fn all_rpcs() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/hostagent/hostagent.proto");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn a_creation_that_cannot_be_is_refused_with_the_reason() {
    let stage = Stage::new().await;
    let client = &stage.client;
    refused(
        client.create_sandbox(create("me", "minimal")).await,
        ErrorCode::InvalidArgument,
        "'me' is no sandbox id",
    );
    refused(
        client.create_sandbox(create(ID, "../base")).await,
        ErrorCode::InvalidArgument,
        "is no template name",
    );
    refused(
        client.create_sandbox(create(ID, "no-such")).await,
        ErrorCode::NotFound,
        "there is no template 'no-such' on this host; it has none at all",
    );
    for (vcpus, memory_mib, code, words) in [
        (4000, 0, ErrorCode::InvalidArgument, "ask for 1 to 32"),
        (0, 1, ErrorCode::InvalidArgument, "ask for 96 to"),
    ] {
        let resources = Resources { vcpus, memory_mib };
        let request = CreateSandboxRequest {
            resources: Some(resources).into(),
            ..create(ID, "minimal")
        };
        refused(client.create_sandbox(request).await, code, words);
    }
    let request = CreateSandboxRequest {
        egress: Some(Egress {
            allow: vec!["everything".to_owned()],
            ..Egress::default()
        })
        .into(),
        ..create(ID, "minimal")
    };
    refused(
        client.create_sandbox(request).await,
        ErrorCode::InvalidArgument,
        "'everything' is no IPv4 network",
    );
    let listed = client
        .list_sandboxes(ListSandboxesRequest::default())
        .await
        .unwrap();
    assert!(listed.into_owned().sandboxes.is_empty());
    stage.agent.stop().await;
}

#[tokio::test]
async fn a_full_host_says_what_is_missing() {
    let limits = ["--max-memory-mib", "256", "--max-vcpus", "2"];
    let stage = Stage::with(&limits, HttpClient::plaintext()).await;
    for (vcpus, memory_mib, words) in [
        (1, 512, "520 MiB of memory are asked for and 256"),
        (3, 128, "3 vCPUs are asked for and 2"),
    ] {
        let request = CreateSandboxRequest {
            resources: Some(Resources { vcpus, memory_mib }).into(),
            ..create(ID, "minimal")
        };
        refused(
            stage.client.create_sandbox(request).await,
            ErrorCode::ResourceExhausted,
            words,
        );
    }
    let host = stage.client.get_host(GetHostRequest::default()).await;
    let host = host.unwrap().into_owned();
    assert_eq!((host.sandboxes, host.vcpus, host.memory_mib), (0, 0, 0));
    assert_eq!((host.max_vcpus, host.max_memory_mib), (2, 256));
    stage.agent.stop().await;
}

#[tokio::test]
#[allow(
    clippy::needless_update,
    reason = "some requests have an id and nothing else"
)]
async fn every_rpc_about_an_unknown_sandbox_says_that_it_is_unknown() {
    let stage = Stage::new().await;
    let client = &stage.client;
    macro_rules! unknown {
        ($($method:ident($request:ident { $($field:ident: $value:expr),* })),* $(,)?) => {
            $({
                let request = $request {
                    id: ID.to_owned(),
                    $($field: $value,)*
                    ..$request::default()
                };
                let answer = client.$method(request).await;
                refused(answer, ErrorCode::NotFound, "there is no sandbox sbaaaa");
            })*
        };
    }
    let command = || Command {
        program: "true".to_owned(),
        ..Command::default()
    };
    let path = || "/tmp/x".to_owned();
    unknown! {
        get_sandbox(GetSandboxRequest {}),
        ping_sandbox(PingSandboxRequest {}),
        set_egress(SetEgressRequest {}),
        get_metrics(GetMetricsRequest {}),
        get_console(GetConsoleRequest {}),
        exec(ExecRequest { command: Some(command()).into() }),
        list_processes(ListProcessesRequest {}),
        signal_process(SignalProcessRequest { pid: 1, signal: 15 }),
        write_file(WriteFileRequest { path: path() }),
        read_file(ReadFileRequest { path: path() }),
        stat(StatRequest { path: path() }),
        list_dir(ListDirRequest { path: path() }),
        make_dir(MakeDirRequest { path: path() }),
        move_path(MovePathRequest { from: path(), to: path() }),
        remove_path(RemovePathRequest { path: path() }),
    }
    // Streams say so in their first answer.
    let request = StreamWriteFileRequest {
        id: ID.to_owned(),
        path: path(),
        ..StreamWriteFileRequest::default()
    };
    let uploaded = client
        .stream_write_file(futures::stream::iter([request]))
        .await;
    refused(uploaded, ErrorCode::NotFound, "there is no sandbox");
    let request = WatchDirRequest {
        id: ID.to_owned(),
        path: path(),
        ..WatchDirRequest::default()
    };
    match client.watch_dir(request).await {
        Ok(mut stream) => refused(
            stream.message().await,
            ErrorCode::NotFound,
            "there is no sandbox",
        ),
        Err(error) => refused::<()>(Err(error), ErrorCode::NotFound, "there is no sandbox"),
    }
    let request = FollowConsoleRequest {
        id: ID.to_owned(),
        ..FollowConsoleRequest::default()
    };
    match client.follow_console(request).await {
        Ok(mut stream) => refused(
            stream.message().await,
            ErrorCode::NotFound,
            "there is no sandbox",
        ),
        Err(error) => refused::<()>(Err(error), ErrorCode::NotFound, "there is no sandbox"),
    }
    let request = WriteArchiveRequest {
        id: ID.to_owned(),
        path: path(),
        ..WriteArchiveRequest::default()
    };
    let unpacked = client.write_archive(futures::stream::iter([request])).await;
    refused(unpacked, ErrorCode::NotFound, "there is no sandbox");
    let request = ReadArchiveRequest {
        id: ID.to_owned(),
        path: path(),
        ..ReadArchiveRequest::default()
    };
    match client.read_archive(request).await {
        Ok(mut stream) => refused(
            stream.message().await,
            ErrorCode::NotFound,
            "there is no sandbox",
        ),
        Err(error) => refused::<()>(Err(error), ErrorCode::NotFound, "there is no sandbox"),
    }
    let mut stream = client.exec_stream().await.unwrap();
    let start = ExecStart {
        id: ID.to_owned(),
        command: Some(command()).into(),
    };
    stream
        .send(ExecStreamRequest {
            message: Some(start.into()),
        })
        .await
        .unwrap();
    refused(
        stream.message().await,
        ErrorCode::NotFound,
        "there is no sandbox",
    );
    // Nobody needs to destroy what is gone.
    let gone = DestroySandboxRequest { id: ID.to_owned() };
    client.destroy_sandbox(gone).await.unwrap();
    stage.agent.stop().await;
}

#[tokio::test]
async fn errors_tell_programs_their_reason() {
    let stage = Stage::new().await;
    let client = &stage.client;
    let reason = |error: ConnectError| reason_of(&error).unwrap();
    let missing = GetSandboxRequest { id: ID.to_owned() };
    let error = client.get_sandbox(missing).await.err().unwrap();
    assert_eq!(reason(error), Reason::REASON_SANDBOX_NOT_FOUND);
    let error = client.create_sandbox(create(ID, "no-such")).await;
    let error = error.err().unwrap();
    assert_eq!(reason(error), Reason::REASON_TEMPLATE_NOT_FOUND);
    let unknown = DeleteSnapshotRequest {
        name: "tmaaaaaaaaaaaaaaaaaaaa".to_owned(),
    };
    let error = client.delete_snapshot(unknown).await.err().unwrap();
    assert_eq!(reason(error), Reason::REASON_SNAPSHOT_NOT_FOUND);
    let error = client.create_sandbox(create("me", "minimal")).await;
    assert_eq!(reason(error.err().unwrap()), Reason::REASON_INVALID);
    let large = WriteFileRequest {
        id: ID.to_owned(),
        path: "/tmp/x".to_owned(),
        data: vec![0; 17 << 20].into(),
        ..WriteFileRequest::default()
    };
    let error = client.write_file(large).await.err().unwrap();
    assert_eq!(reason(error), Reason::REASON_TOO_LARGE);
    stage.agent.stop().await;
}

#[tokio::test]
async fn what_is_out_of_bounds_never_reaches_a_guest() {
    let stage = Stage::new().await;
    let client = &stage.client;
    let request = StatRequest {
        id: ID.to_owned(),
        path: "x".repeat(5000),
        ..StatRequest::default()
    };
    refused(
        client.stat(request).await,
        ErrorCode::InvalidArgument,
        "is longer than 4095 bytes",
    );
    let request = SignalProcessRequest {
        id: ID.to_owned(),
        pid: 1,
        signal: 11,
        ..SignalProcessRequest::default()
    };
    refused(
        client.signal_process(request).await,
        ErrorCode::InvalidArgument,
        "signal 11 is not passed on",
    );
    for megabytes in [17, 30] {
        let request = WriteFileRequest {
            id: ID.to_owned(),
            path: "/tmp/x".to_owned(),
            data: vec![0; megabytes << 20].into(),
            ..WriteFileRequest::default()
        };
        refused(
            client.write_file(request).await,
            ErrorCode::InvalidArgument,
            "use StreamWriteFile",
        );
    }
    let mut stream = client.exec_stream().await.unwrap();
    stream
        .send(ExecStreamRequest {
            message: Some(CloseInput::default().into()),
        })
        .await
        .unwrap();
    refused(
        stream.message().await,
        ErrorCode::InvalidArgument,
        "the first message must be 'start'",
    );
    stage.agent.stop().await;
}

#[tokio::test]
async fn health_and_metrics_are_plain_and_may_have_a_port_of_their_own() {
    let stage = Stage::with(
        &["--metrics-listen", "127.0.0.1:0"],
        HttpClient::plaintext(),
    )
    .await;
    let (address, metrics) = (
        stage.agent.address(),
        stage.agent.metrics_address().unwrap(),
    );
    let bearer = stage.bearer();
    let with_token = format!("Host: localhost\r\n{bearer}");
    for (address, headers) in [
        (address, with_token.as_str()),
        (metrics, "Host: localhost\r\n"),
    ] {
        let health = get(address, "/healthz").await;
        assert!(health.starts_with("HTTP/1.1 200 OK"), "{health}");
        let text = get_with(address, "/metrics", headers).await;
        assert!(text.contains("wrenn_agent_sandboxes{state=\"running\"} 0"));
        assert!(text.contains("application/openmetrics-text"), "{text}");
        let missing = get_with(address, "/nowhere", headers).await;
        assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
        let posted = format!(
            "POST /metrics HTTP/1.1\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let posted = plain(address, &posted).await;
        assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
    }
    // The RPCs, in JSON and HTTP/1.1, on their own port only.
    let answer = post(address, "ListSandboxes", &with_token).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = post(metrics, "ListSandboxes", &with_token).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    stage.agent.stop().await;
}

#[tokio::test]
async fn all_but_health_wants_the_token() {
    let stage = Stage::new().await;
    let address = stage.agent.address();
    let rpcs = all_rpcs();
    assert!(rpcs.len() > 30, "the service was found");
    let wrong = "Host: localhost\r\nAuthorization: Bearer wrong\r\n";
    for headers in ["Host: localhost\r\n", wrong] {
        for method in &rpcs {
            let answer = post(address, method, headers).await;
            assert!(answer.starts_with("HTTP/1.1 401"), "{method}: {answer}");
            assert!(answer.contains("\"unauthenticated\""), "{answer}");
        }
        for path in ["/metrics", "/nowhere", "/healthz/../metrics"] {
            let answer = get_with(address, path, headers).await;
            assert!(answer.starts_with("HTTP/1.1 401"), "{path}: {answer}");
        }
        let answer = get_with(address, "/healthz", headers).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // Streams are told in their own way.
    let uri = format!("http://{address}").parse().unwrap();
    let config = ClientConfig::new(uri).with_default_header("authorization", "Bearer wrong");
    let client = HostAgentClient::new(HttpClient::plaintext_http2_only(), config);
    let host = client.get_host(GetHostRequest::default()).await;
    let error = host.err().unwrap();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert_eq!(reason_of(&error), Some(Reason::REASON_UNAUTHENTICATED));
    let watch = WatchDirRequest::default();
    let error = match client.watch_dir(watch).await {
        Ok(mut stream) => stream.message().await.err().unwrap(),
        Err(error) => error,
    };
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert_eq!(reason_of(&error), Some(Reason::REASON_UNAUTHENTICATED));
    stage.agent.stop().await;
}

/// Hazard 56: a page in a browser reaches a loopback port under a name of its own.
#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let more = [
        "--metrics-listen",
        "127.0.0.1:0",
        "--allowed-host",
        "agent.example",
    ];
    let stage = Stage::with(&more, HttpClient::plaintext()).await;
    let (address, metrics) = (
        stage.agent.address(),
        stage.agent.metrics_address().unwrap(),
    );
    let bearer = stage.bearer();
    for host in ["evil.example", "0.0.0.0", "[::]", "127.0.0.1.evil.example"] {
        let headers = format!("Host: {host}\r\n{bearer}");
        for path in ["/healthz", "/metrics", "/nowhere"] {
            for address in [address, metrics] {
                let answer = get_with(address, path, &headers).await;
                assert!(
                    answer.starts_with("HTTP/1.1 403"),
                    "{host} {path}: {answer}"
                );
            }
        }
        let answer = post(address, "GetHost", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
    }
    for host in [
        "localhost".to_owned(),
        "127.0.0.1:1".to_owned(),
        "[::1]".to_owned(),
        "agent.example:443".to_owned(),
        address.to_string(),
    ] {
        let headers = format!("Host: {host}\r\n{bearer}");
        let answer = post(address, "GetHost", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    for origin in ["null", "http://localhost", "https://evil.example"] {
        let headers = format!("Host: localhost\r\nOrigin: {origin}\r\n{bearer}");
        let answer = post(address, "GetHost", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{origin}: {answer}");
    }
    stage.agent.stop().await;
}

#[tokio::test]
async fn token_and_identity_outlive_the_agent() {
    let stage = Stage::with(&["--listen", "0.0.0.0:0"], HttpClient::plaintext()).await;
    let token = stage.agent.token().clone();
    let host = stage.client.get_host(GetHostRequest::default()).await;
    let root_id = host.unwrap().into_owned().root_id;
    let listed = stage.client.list_sandboxes(ListSandboxesRequest::default());
    assert_eq!(listed.await.unwrap().into_owned().root_id, root_id);
    assert_eq!(root_id.len(), 32);
    stage.agent.stop().await;
    let again = Agent::start_without_host(config(stage.root.path(), &[]));
    let again = again.await.unwrap();
    assert_eq!(again.token(), &token);
    again.stop().await;
}

#[tokio::test]
async fn one_agent_at_a_time_has_a_root_directory() {
    let stage = Stage::new().await;
    let second = Agent::start_without_host(config(stage.root.path(), &[])).await;
    let error = second.unwrap_err();
    assert!(matches!(error, StartError::Lock(_)), "{error}");
    assert!(
        error.to_string().contains("another agent (process"),
        "{error}"
    );
    stage.agent.stop().await;
    let third = Agent::start_without_host(config(stage.root.path(), &[])).await;
    third.unwrap().stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named_and_the_lock_given_back() {
    let stage = Stage::new().await;
    let other = tempfile::tempdir().unwrap();
    let address = stage.agent.address().to_string();
    let taken = config(other.path(), &[]);
    let taken = Config {
        listen: address.parse().unwrap(),
        ..taken
    };
    let error = Agent::start_without_host(taken).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {address}"));
    let again = Agent::start_without_host(config(other.path(), &[])).await;
    again.unwrap().stop().await;
    stage.agent.stop().await;
}

#[tokio::test]
async fn a_stream_that_waits_does_not_hold_up_the_stop() {
    let stage = Stage::new().await;
    // Opened, and nothing said: the agent waits for the first message.
    let mut stream = stage
        .client
        .exec_stream_with_options(CallOptions::default())
        .await
        .unwrap();
    let waiting = tokio::spawn(async move {
        let answer = stream.message().await;
        refused(answer, ErrorCode::Unavailable, "the agent stops");
    });
    // The stream is there once the metrics say that a request was taken; there is no such
    // number for one that has not begun, so another call is answered behind it.
    stage
        .client
        .get_host(GetHostRequest::default())
        .await
        .unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(60), stage.agent.stop());
    stopped.await.unwrap();
    waiting.await.unwrap();
}
