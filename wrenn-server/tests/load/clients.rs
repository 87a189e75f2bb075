//! Clients that are silent, slow, or do not read: each has a deadline or waits, and costs
//! bounded memory.

use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async};
use wrenn_sdk::Sandbox;

use crate::program::ServerProcess;
use crate::{assert_bounded, parameter};

/// What the server gives a client for its headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between the connections of two clients.
const CONNECT_INTERVAL: Duration = Duration::from_millis(5);
/// A busy machine may notice a deadline so much later.
const SLACK: Duration = Duration::from_secs(20);
const PROMPT: Duration = Duration::from_secs(5);
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Asserts that the API still answers.
async fn assert_prompt(sandbox: &Sandbox) {
    let since = Instant::now();
    let echoed = sandbox.exec("echo", ["hello"]).await.unwrap();
    assert_eq!(echoed.stdout_text(), "hello\n");
    let elapsed = since.elapsed();
    assert!(elapsed < PROMPT, "an exec took {elapsed:.1?}");
}

/// Opens a connection that sends `first`, and then `rest` again and again, a byte each second.
/// Returns how long the server kept it.
async fn hold(server: std::net::SocketAddr, first: &[u8], rest: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let since = Instant::now();
    stream.write_all(first).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let closed = async {
        let mut buffer = [0; 512];
        // An answer (408) may come before the end.
        while matches!(reading.read(&mut buffer).await, Ok(1..)) {}
    };
    let dribble = async {
        for byte in rest.iter().cycle() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if writing.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = closed => {}
        () = dribble => {}
        () = tokio::time::sleep(HEADERS_TIMEOUT + SLACK) => {}
    }
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_dribbling_clients_are_disconnected() {
    let silent = parameter("WRENN_LOAD_SILENT", 500);
    let dribbling = parameter("WRENN_LOAD_DRIBBLING", 200);
    let server = ServerProcess::start("info").await;
    let sandbox = server.sdk().sandboxes().create("base").await.unwrap();
    assert_prompt(&sandbox).await;
    let address = server.address;
    let before = server.memory();
    server.reset_peak();
    let headers = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";
    let clients = (0..silent + dribbling).map(|number| {
        tokio::spawn(async move {
            // The kernel's queue of new connections is short, and drops what does not fit.
            tokio::time::sleep(CONNECT_INTERVAL * u32::try_from(number).unwrap()).await;
            match number {
                number if number < silent => hold(address, b"", b"").await,
                // It could still become HTTP/2.
                number if number % 10 == 0 => {
                    hold(address, &HTTP2_PREFACE[..1], &HTTP2_PREFACE[1..20]).await
                }
                _ => hold(address, headers, b"x").await,
            }
        })
    });
    let clients = tokio::spawn(join_all(clients.collect::<Vec<_>>()));
    while !clients.is_finished() {
        assert_prompt(&sandbox).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let kept = clients.await.unwrap().into_iter().map(Result::unwrap);
    let open: Vec<_> = kept
        .enumerate()
        .filter(|(_, kept)| *kept >= HEADERS_TIMEOUT + SLACK)
        .collect();
    assert!(open.is_empty(), "connections are still open: {open:?}");
    assert_bounded(&server, before, "silent and dribbling clients");
}

/// A WebSocket on which a command was started. Its small buffer is soon full.
async fn start(server: &ServerProcess, id: &str, script: &str) -> WebSocketStream<TcpStream> {
    let url = format!("ws://{}/v1/sandboxes/{id}/exec/stream", server.address);
    let mut request = url.into_client_request().unwrap();
    let key = server.api_key.parse().unwrap();
    request.headers_mut().insert("x-api-key", key);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    let message = json!({"type": "start", "cmd": "sh", "args": ["-c", script]});
    socket
        .send(Message::text(message.to_string()))
        .await
        .unwrap();
    let first = socket.next().await.unwrap().unwrap();
    assert!(first.to_text().unwrap().contains("started"), "{first:?}");
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_clients_that_do_not_read_wait() {
    let readers = parameter("WRENN_LOAD_READERS", 50);
    let server = ServerProcess::start("info").await;
    let sandbox = server.sdk().sandboxes().create("base").await.unwrap();
    assert_prompt(&sandbox).await;
    let before = server.memory();
    server.reset_peak();
    // 256 MiB, of which a client that does not read gets a few hundred KiB.
    let flood = "head -c 268435456 /dev/zero";
    let id = sandbox.id().as_str();
    let mut sockets = join_all((0..readers).map(|_| start(&server, id, flood))).await;
    let since = Instant::now();
    let mut settled = server.memory();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_prompt(&sandbox).await;
        let now = server.memory();
        if since.elapsed() > Duration::from_secs(5) && now.resident < settled.resident + 0.5 {
            break;
        }
        settled = now;
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "memory still grows: {now:?}"
        );
    }
    let processes = sandbox.processes().await.unwrap();
    assert_eq!(processes.len(), readers, "every command waits");
    assert_bounded(&server, before, "clients that do not read");
    // One that reads again gets all of it.
    let mut socket = sockets.pop().unwrap();
    let mut bytes = 0;
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Binary(frame) => bytes += frame.len() - 9,
            Message::Text(text) => {
                assert!(text.contains("\"exit\""), "{text}");
                break;
            }
            _ => {}
        }
    }
    assert_eq!(bytes, 256 << 20);
}
