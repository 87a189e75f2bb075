//! What must never happen, tried with the sizes at which it did happen elsewhere.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use common::{TestDaemon, body, follow, get, is_alive, selector, shell, until};
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use sha2::{Digest, Sha256};
use wrenn_envd::process::GracePeriods;
use wrenn_proto::connectrpc::client::{CallOptions, ClientConfig, HttpClient};
use wrenn_proto::process::{ProcessClient, SendSignalRequest, Signal};

/// The program itself, in a process of its own: its memory shall be measured.
struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    async fn start() -> Self {
        // Taken and given back: a daemon that finds it taken again fails loudly.
        let port = {
            let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            probe.local_addr().unwrap().port()
        };
        #[allow(clippy::disallowed_methods, reason = "the program under test")]
        let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-envd"));
        command
            .args(["--address=127.0.0.1", &format!("--port={port}")])
            .arg(format!("--default-user={}", common::own_user()))
            .stdin(Stdio::null());
        // A thread that starts it, since the room is the thread's.
        let start = move || {
            common::room::enter().unwrap();
            command.spawn().unwrap()
        };
        let child = std::thread::spawn(start).join().unwrap();
        let program = Self {
            child,
            address: ([127, 0, 0, 1], port).into(),
        };
        until("the daemon listens", || {
            std::net::TcpStream::connect(program.address).is_ok()
        })
        .await;
        program
    }

    /// The most memory that it ever had, in KiB.
    fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn processes(&self) -> ProcessClient<HttpClient> {
        let config = ClientConfig::new(format!("http://{}", self.address).parse().unwrap());
        ProcessClient::new(HttpClient::plaintext(), config)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Repeats every 251 bytes, so that a lost or doubled chunk changes what follows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect()
}

/// Hazards 1 and 2: a slow reader gets all of 256 MB, then one end; meanwhile the daemon
/// does not hold what the reader has not taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_loses_nothing() {
    const SIZE: usize = 256 * 1000 * 1000;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("data");
    let block = pattern(251 * 4096);
    let mut expected = Sha256::new();
    let mut file = std::fs::File::create(&path).unwrap();
    let mut written = 0;
    while written < SIZE {
        let part = &block[..block.len().min(SIZE - written)];
        file.write_all(part).unwrap();
        expected.update(part);
        written += part.len();
    }

    let program = Program::start().await;
    let request = shell(&format!("cat {}; echo done >&2", path.display()));
    let mut stream = program.processes().start(request).await.unwrap();
    let mut got = Sha256::new();
    let (mut count, mut pauses) = (0, 0);
    let mut told = common::Told::default();
    while let Some(message) = stream.message().await.unwrap() {
        told.take(
            message
                .to_owned_message()
                .event
                .into_option()
                .and_then(|event| event.event),
        );
        got.update(&told.stdout);
        count += told.stdout.len();
        told.stdout.clear();
        // A reader that stops now and then, for longer than any buffer lasts.
        if count / (SIZE / 20) > pauses {
            pauses += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert_eq!(count, SIZE);
    assert_eq!(got.finalize(), expected.finalize());
    assert_eq!(
        (told.stderr.as_slice(), told.exit_code()),
        (&b"done\n"[..], 0)
    );
    assert!(
        program.peak_memory() < 64 * 1024,
        "{} KiB",
        program.peak_memory()
    );
}

/// Hazard 2, the other half: with a reader that does not read at all, the process stops
/// instead of its output.
#[tokio::test]
async fn a_reader_that_stops_stops_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let progress = dir.path().join("progress");
    let script = format!(
        "i=0; while [ $i -lt 2000 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > {}; done",
        progress.display()
    );
    let daemon = TestDaemon::start().await;
    let stream = daemon.processes().start(shell(&script)).await.unwrap();
    let read = |path: &Path| -> u32 {
        std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    // It runs until all buffers are full, and then its progress stands still.
    let mut last = 0;
    let mut still = 0;
    while still < 20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = read(&progress);
        still = if now == last && now > 0 { still + 1 } else { 0 };
        last = now;
    }
    assert!(last < 1000, "the process went on without a reader: {last}");
    let told = follow!(stream).unwrap();
    assert_eq!((told.stdout.len(), told.exit_code()), (2000 * 65536, 0));
    daemon.stop().await;
}

/// Hazard 1: the end comes, once, also where something is left behind that holds the
/// output open and writes to it for ever.
#[tokio::test]
async fn a_child_left_behind_does_not_hold_up_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    for writes in ["sleep 1000", "yes"] {
        let daemon = TestDaemon::start().await;
        let script = format!(
            "{writes} & echo $! > {}; echo last words >&2",
            pid_file.display()
        );
        let stream = daemon.processes().start(shell(&script)).await.unwrap();
        let told = tokio::time::timeout(common::PATIENCE, async { follow!(stream) }).await;
        let told = told.expect("the end came").unwrap();
        assert_eq!(
            (told.stderr.as_slice(), told.exit_code()),
            (&b"last words\n"[..], 0)
        );
        let left: u32 = std::fs::read_to_string(&pid_file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(is_alive(left), "what was left behind goes on");
        let pid = rustix::process::Pid::from_raw(left.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        daemon.stop().await;
    }
}

/// Hazard 1: a helper that outlives the shell by a moment still gets its last words out.
#[tokio::test]
async fn what_a_helper_writes_while_the_shell_ends_is_delivered() {
    // What a moment is depends on the machine.
    let daemon = TestDaemon::with_grace(GracePeriods {
        linger: common::PATIENCE,
        ..GracePeriods::default()
    })
    .await;
    let mut request = shell("");
    request.process.modify(|process| {
        process.cmd = "/bin/bash".to_owned();
        process.args = vec![
            "-c".to_owned(),
            "echo through > >(cat; echo tail)".to_owned(),
        ];
    });
    for _ in 0..20 {
        let told = follow!(daemon.processes().start(request.clone()).await.unwrap()).unwrap();
        assert_eq!(told.stdout, b"through\ntail\n");
        assert_eq!(told.exit_code(), 0);
    }
    daemon.stop().await;
}

/// Hazard 1: short-lived commands, many at once; each has all its output and one end.
#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_many_ends_once_with_all_its_output() {
    let daemon = TestDaemon::start().await;
    let runs = (0..200).map(|n| {
        let client = daemon.processes();
        async move {
            let stream = client
                .start(shell(&format!("printf %s {n}; exit {}", n % 7)))
                .await
                .unwrap();
            let told = follow!(stream).unwrap();
            assert_eq!(told.stdout, n.to_string().into_bytes());
            assert_eq!(told.exit_code(), n % 7);
        }
    });
    use futures::StreamExt as _;
    futures::stream::iter(runs)
        .buffer_unordered(16)
        .collect::<Vec<()>>()
        .await;
    daemon.stop().await;
}

/// Hazard 3: a kill reaches children, grandchildren, and the jobs of a shell with job
/// control, which are process groups of their own.
#[tokio::test]
async fn a_kill_reaches_grandchildren() {
    let daemon = TestDaemon::start().await;
    let client = daemon.processes();
    let script = "set -m 2>/dev/null; (sh -c 'sleep 1000 & echo $!; wait' & wait) & \
                  sleep 1000 & echo $!; echo end; wait";
    let mut stream = client.start(shell(script)).await.unwrap();
    let mut told = common::Told::default();
    while told.stdout.iter().filter(|byte| **byte == b'\n').count() < 3 {
        let message = stream.message().await.unwrap().unwrap().to_owned_message();
        told.take(message.event.into_option().and_then(|event| event.event));
    }
    let text = String::from_utf8(told.stdout.clone()).unwrap();
    let children: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(children.len(), 2, "{text}");
    assert!(children.iter().all(|pid| is_alive(*pid)));
    client
        .send_signal(SendSignalRequest {
            process: selector(told.pid).into(),
            signal: Signal::SIGNAL_SIGKILL.into(),
        })
        .await
        .unwrap();
    let rest = follow!(stream).unwrap();
    assert_eq!(rest.ends.len(), 1);
    assert_eq!(rest.ends[0].status, "signal: killed");
    until("all children are gone", || {
        !children.iter().any(|pid| is_alive(*pid))
    })
    .await;
    daemon.stop().await;
}

/// Hazard 4: 1 GB goes up and comes down through a small, constant memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_goes_up_and_down_in_constant_memory() {
    const BLOCK: usize = 251 * 4096;
    const BLOCKS: usize = 1_000_000_000 / BLOCK + 1;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("gigabyte");
    let program = Program::start().await;
    let before = program.peak_memory();

    let block = Bytes::from(pattern(BLOCK));
    let blocks = futures::stream::iter((0..BLOCKS).map({
        let block = block.clone();
        move |_| Ok(hyper::body::Frame::data(block.clone()))
    }));
    let upload = Request::post(format!("/files?path={}", path.display()))
        .header("content-type", "application/octet-stream")
        .body(StreamBody::new(blocks).boxed_unsync())
        .unwrap();
    let (status, _, answer) = common::http(program.address, upload).await;
    assert_eq!(status, 200, "{answer:?}");
    assert_eq!(path.metadata().unwrap().len(), (BLOCK * BLOCKS) as u64);

    let (head, mut download) = common::open(
        program.address,
        get(&format!("/files?path={}", path.display())),
    )
    .await;
    assert_eq!(
        head.headers["content-length"],
        (BLOCK * BLOCKS).to_string().as_str()
    );
    let mut at = 0;
    while let Some(frame) = download.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        let mut rest = &data[..];
        while !rest.is_empty() {
            let here = &block[at % BLOCK..];
            let count = here.len().min(rest.len());
            assert!(here[..count] == rest[..count], "different at {at}");
            (at, rest) = (at + count, &rest[count..]);
        }
    }
    assert_eq!(at, BLOCK * BLOCKS);
    let after = program.peak_memory();
    assert!(
        after < 64 * 1024,
        "{before} KiB before, {after} KiB at most"
    );
}

/// Hazard 4: an upload that breaks off leaves the old file, and nothing beside it.
#[tokio::test]
async fn a_broken_upload_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "old").unwrap();
    let daemon = TestDaemon::start().await;
    let mut stream = std::net::TcpStream::connect(daemon.address).unwrap();
    write!(
        stream,
        "POST /files?path={} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: 1000000\r\n\r\n",
        path.display()
    )
    .unwrap();
    stream.write_all(&vec![b'n'; 700_000]).unwrap();
    let entries = || std::fs::read_dir(dir.path()).unwrap().count();
    until("the upload is under way", || entries() == 2).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    drop(stream);
    until("the upload is cleaned up", || entries() == 1).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    daemon.stop().await;
}

/// Hazard 4: a full disk is told as 507 and costs nobody an old file. /dev/full is the
/// one full disk that every host has.
#[tokio::test]
async fn a_full_disk_is_told() {
    let daemon = TestDaemon::start().await;
    let upload = Request::post("/files?path=/dev/full")
        .header("content-type", "application/octet-stream")
        .body(body("x"))
        .unwrap();
    let (status, _, answer) = daemon.http(upload).await;
    assert_eq!(status, 507, "{answer:?}");
    let error: wrenn_proto::http::ErrorBody = serde_json::from_slice(&answer).unwrap();
    assert_eq!(error.code, 507);
    daemon.stop().await;
}

/// Hazard 23: the daemon sets no time limit of its own on a stream.
#[tokio::test]
async fn a_client_that_leaves_does_not_end_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let daemon = TestDaemon::start().await;
    // More output than all buffers hold, so that only a process whose output goes
    // somewhere gets to its end.
    let script = format!(
        "sleep 0.2; head -c 5000000 /dev/zero; touch {}",
        done.display()
    );
    let stream = daemon
        .processes()
        .start_with_options(shell(&script), CallOptions::default())
        .await
        .unwrap();
    drop(stream);
    until("the process came to its end", || done.exists()).await;
    daemon.stop().await;
}

/// Hazard 25: every route and every RPC, walked without a token and with a wrong one. It is
/// never walked with the right one: an RPC that is let through does what it says, to this
/// host. Stops at the first that is let through, for the same reason.
#[tokio::test]
async fn nothing_but_health_answers_without_the_token() {
    let daemon = TestDaemon::start_with("secret").await;
    let mut routes = vec![
        ("GET", "/metrics".to_owned()),
        ("GET", "/envs".to_owned()),
        ("POST", "/init".to_owned()),
        ("POST", "/freeze".to_owned()),
        ("POST", "/sync".to_owned()),
        ("POST", "/thaw".to_owned()),
        ("GET", "/files?path=/etc/passwd".to_owned()),
        ("HEAD", "/files?path=/etc/passwd".to_owned()),
        ("POST", "/files?path=/tmp/never".to_owned()),
        ("POST", "/files/compose".to_owned()),
        ("GET", "/files?path=/etc/passwd&signature=v1_x".to_owned()),
        ("GET", "/files?path=/etc/passwd&signature=".to_owned()),
        ("DELETE", "/files".to_owned()),
        ("GET", "/archive?path=/etc".to_owned()),
        ("POST", "/archive?path=/tmp/never".to_owned()),
        ("GET", "/archive?path=/etc&signature=v1_x".to_owned()),
        ("GET", "/".to_owned()),
        ("GET", "//health".to_owned()),
        ("GET", "/health/../envs".to_owned()),
        ("GET", "/nowhere".to_owned()),
    ];
    for rpc in all_rpcs() {
        routes.push(("POST", rpc.clone()));
        routes.push(("GET", rpc));
    }
    assert!(routes.len() > 16 + 30, "the services were found");
    for (method, path) in &routes {
        for token in [None, Some("wrong"), Some("")] {
            let mut request = Request::builder()
                .method(*method)
                .uri(path.as_str())
                .header("content-type", "application/json");
            if let Some(token) = token {
                request = request.header("x-access-token", token);
            }
            let (status, _, _) = daemon.http(request.body(body("{}")).unwrap()).await;
            assert_eq!(status, 401, "{method} {path} {token:?}");
        }
    }
    let (status, _, _) = daemon.http(get("/health")).await;
    assert_eq!(status, 204);
    daemon.stop().await;
}

/// A host takes a route that is not there for a daemon of before, and says nothing.
#[tokio::test]
async fn disks_are_synced_when_asked() {
    let daemon = TestDaemon::start().await;
    let ask = |method| {
        let request = Request::builder().method(method).uri("/sync");
        request.body(body("")).unwrap()
    };
    let (status, _, _) = daemon.http(ask("POST")).await;
    assert_eq!(status, 204);
    let (status, _, _) = daemon.http(ask("GET")).await;
    assert_eq!(status, 405);
    daemon.stop().await;
}

/// Paths of all RPCs, out of the .proto files themselves.
fn all_rpcs() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/envd");
    let mut rpcs = Vec::new();
    for (file, service) in [
        ("process.proto", "process.Process"),
        ("filesystem.proto", "filesystem.Filesystem"),
    ] {
        let mut text = String::new();
        std::fs::File::open(directory.join(file))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
            .map(|name| format!("/{service}/{}", name.trim()));
        rpcs.extend(names);
    }
    rpcs
}
