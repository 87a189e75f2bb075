//! The stream of a process over connections that break.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use futures::future::BoxFuture;
use wrenn_api::error::ErrorCode;
use wrenn_api::stream::{
    Channel, ClientMessage, Exit, Offsets, Output, ServerMessage, decode_input,
};
use wrenn_sdk::{Error, NO_ARGS, ProcessEvent, Sandbox};

use crate::server::serve_sandbox;

/// The server's part of each connection of a process: the first message, how many
/// connections there were before, the socket.
type Script = Arc<dyn Fn(ClientMessage, usize, WebSocket) -> BoxFuture<'static, ()> + Send + Sync>;

async fn scripted<F, T>(script: F) -> Sandbox
where
    F: Fn(ClientMessage, usize, WebSocket) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let script: Script =
        Arc::new(move |message, number, socket| Box::pin(script(message, number, socket)));
    let connections = Arc::new(AtomicUsize::new(0));
    let route = get(move |upgrade: WebSocketUpgrade| serve(upgrade, script, connections));
    let routes = Router::new()
        .route("/v1/sandboxes/{id}/exec/stream", route.clone())
        .route("/v1/sandboxes/{id}/processes/{pid}/stream", route);
    serve_sandbox(routes).await
}

async fn serve(
    upgrade: WebSocketUpgrade,
    script: Script,
    connections: Arc<AtomicUsize>,
) -> Response {
    upgrade
        .protocols([wrenn_api::stream::PROTOCOL])
        .on_upgrade(async move |mut socket| {
            let number = connections.fetch_add(1, Ordering::Relaxed);
            let first = receive(&mut socket).await.unwrap();
            let started = ServerMessage::Started {
                pid: 7,
                tag: String::new(),
                tty: false,
            };
            send(&mut socket, &started).await;
            script(first, number, socket).await;
        })
}

async fn receive(socket: &mut WebSocket) -> Option<ClientMessage> {
    while let Some(Ok(message)) = socket.recv().await {
        if let Message::Text(text) = message {
            return Some(serde_json::from_str(&text).unwrap());
        }
    }
    None
}

async fn send(socket: &mut WebSocket, message: &ServerMessage) {
    let text = serde_json::to_string(message).unwrap();
    // A client that was cut off does not hear it.
    let _sent = socket.send(Message::text(text)).await;
}

async fn send_exit(socket: &mut WebSocket, code: i32) {
    let exit = Exit {
        code,
        ..Exit::default()
    };
    send(socket, &ServerMessage::Exit(exit)).await;
    // Whatever was not read yet, as a real server does.
    while let Some(Ok(_)) = socket.recv().await {}
}

async fn send_output(socket: &mut WebSocket, offset: u64, data: Bytes) -> bool {
    let output = Output {
        channel: Channel::Stdout,
        offset,
        data,
    };
    socket.send(Message::Binary(output.encode())).await.is_ok()
}

fn from(message: &ClientMessage) -> Offsets {
    match message {
        ClientMessage::Connect(connect) => connect.from.unwrap(),
        _ => Offsets::default(),
    }
}

/// The byte at each place of the output.
fn pattern(from: u64, length: usize) -> Bytes {
    (from..from + length as u64)
        .map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
        .collect()
}

#[tokio::test]
async fn output_survives_broken_connections() {
    const SIZE: u64 = 4 << 20;
    let sandbox = scripted(|first, number, mut socket| async move {
        // Every connection but the last breaks; each begins with something that was sent.
        let mut at = from(&first)
            .stdout
            .saturating_sub(1000 * (number as u64 % 2));
        let end = if number < 12 {
            at + 300_000 + number as u64
        } else {
            SIZE
        };
        while at < end.min(SIZE) {
            let length = usize::try_from((SIZE - at).min(30_000)).unwrap();
            if !send_output(&mut socket, at, pattern(at, length)).await {
                return;
            }
            at += length as u64;
        }
        if at == SIZE {
            send_exit(&mut socket, 3).await;
        }
    })
    .await;
    let mut process = sandbox.spawn("make", NO_ARGS).await.unwrap();
    assert_eq!(process.pid(), 7);
    let mut got = Vec::new();
    let status = loop {
        match process.next().await.unwrap().unwrap() {
            ProcessEvent::Stdout(bytes) => got.extend_from_slice(&bytes),
            ProcessEvent::Exit(status) => break status,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(status.code, 3);
    assert!(got == pattern(0, usize::try_from(SIZE).unwrap()));
    assert_eq!(process.offsets().stdout, SIZE);
    assert_eq!(process.next().await.unwrap(), None);
}

#[tokio::test]
async fn missing_output_is_an_error() {
    let sandbox = scripted(|_, number, mut socket| async move {
        let offset = number as u64 * 100;
        send_output(&mut socket, offset, Bytes::from_static(b"hello")).await;
    })
    .await;
    let mut process = sandbox.spawn("make", NO_ARGS).await.unwrap();
    process.next().await.unwrap();
    let error = process.next().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::OutputLost {
                expected: 5,
                got: 100,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(process.next().await.is_err());
}

#[tokio::test]
async fn unread_output_stays_with_server() {
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let sandbox = scripted(move |_, _, mut socket| {
        let counted = Arc::clone(&counted);
        async move {
            let data = pattern(0, 32 << 10);
            let mut at = 0;
            while send_output(&mut socket, at, data.clone()).await {
                at += data.len() as u64;
                counted.store(at, Ordering::Relaxed);
            }
        }
    })
    .await;
    let mut process = sandbox.spawn("yes", NO_ARGS).await.unwrap();
    process.next().await.unwrap();
    // Until the server gets no more off.
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent.load(Ordering::Relaxed);
        if now == before {
            break;
        }
        before = now;
    }
    // With what the server's own socket takes, which grows up to four MiB.
    assert!(before < 8 << 20, "{before} bytes are underway");
    let taken = process.offsets().stdout;
    assert!(taken <= 128 << 10, "{taken} bytes were taken in");
}

#[tokio::test]
async fn input_that_was_read_survives_broken_connection() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&got);
    let sandbox = scripted(move |_, number, mut socket| {
        let got = Arc::clone(&taken);
        async move {
            while let Some(Ok(message)) = socket.recv().await {
                match message {
                    Message::Binary(frame) => {
                        got.lock().unwrap().extend(decode_input(&frame).unwrap());
                    }
                    Message::Ping(_) if number == 0 => {
                        // The pong is on its way; the next frame is answered by an end.
                        send_output(&mut socket, 0, Bytes::from_static(b"go")).await;
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        return;
                    }
                    Message::Text(text) if text.contains("eof") => {
                        return send_exit(&mut socket, 0).await;
                    }
                    _ => {}
                }
            }
        }
    })
    .await;
    let mut process = sandbox.spawn("cat", NO_ARGS).stdin().await.unwrap();
    process.write_stdin("first ").await.unwrap();
    assert_eq!(
        process.next().await.unwrap(),
        Some(ProcessEvent::Stdout(Bytes::from_static(b"go")))
    );
    tokio::time::sleep(Duration::from_millis(400)).await;
    process.write_stdin("second").await.unwrap();
    process.close_stdin().await.unwrap();
    assert!(process.wait().await.unwrap().success());
    assert_eq!(got.lock().unwrap().as_slice(), b"first second");
}

#[tokio::test]
async fn input_in_doubt_is_an_error() {
    let sandbox = scripted(|_, _, mut socket| async move {
        // Reads one frame and breaks before its ping.
        socket.recv().await;
    })
    .await;
    let mut process = sandbox.spawn("cat", NO_ARGS).stdin().await.unwrap();
    process.write_stdin("hello").await.unwrap();
    let error = process.next().await.unwrap_err();
    assert!(
        matches!(error, Error::InputLost { in_doubt: 5 }),
        "{error:?}"
    );
    assert!(process.write_stdin("more").await.is_err());
}

#[tokio::test]
async fn ended_process_after_reconnect_is_an_api_error() {
    let sandbox = scripted(|_, number, mut socket| async move {
        if number > 0 {
            let error = ServerMessage::Error {
                code: ErrorCode::NotFound,
                message: "there is no process 7".to_owned(),
            };
            send(&mut socket, &error).await;
        }
    })
    .await;
    let mut process = sandbox.spawn("true", NO_ARGS).await.unwrap();
    let error = process.next().await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
}

#[tokio::test]
async fn server_that_stays_away_is_given_up() {
    let sandbox = scripted(|_, _, socket| async move { drop(socket) }).await;
    let mut process = sandbox
        .spawn("true", NO_ARGS)
        .reconnect_for(Duration::from_secs(1))
        .await
        .unwrap();
    let error = process.next().await.unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
}

#[tokio::test]
async fn last_input_is_sent_before_detaching() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Arc::new(Mutex::new(Some(tell)));
    let sandbox = scripted(move |_, _, mut socket| {
        let tell = tell.lock().unwrap().take();
        async move {
            let mut got = Vec::new();
            while let Some(Ok(message)) = socket.recv().await {
                if let Message::Binary(frame) = message {
                    got.extend(decode_input(&frame).unwrap());
                }
            }
            tell.unwrap().send(got).unwrap();
        }
    })
    .await;
    let mut process = sandbox.spawn("cat", NO_ARGS).stdin().await.unwrap();
    process.write_stdin("bye").await.unwrap();
    process.detach();
    assert_eq!(told.await.unwrap(), b"bye");
}
