//! The WebSocket of commands, spoken by hand.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use wrenn_api::stream::{Output, encode_input};

use crate::client::Api;

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn open(api: &Api, path: &str, key: Option<&str>) -> Result<Self, Error> {
        let mut request = format!("ws://{}{path}", api.server.address())
            .into_client_request()
            .unwrap();
        if let Some(key) = key {
            request
                .headers_mut()
                .insert("x-api-key", key.parse().unwrap());
        }
        let stream = TcpStream::connect(api.server.address()).await.unwrap();
        let (socket, _) = client_async(request, stream).await?;
        Ok(Self(socket))
    }

    async fn send(&mut self, message: Value) {
        self.0
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
    }

    async fn next(&mut self) -> Message {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.0.next());
            match next
                .await
                .expect("a frame comes")
                .expect("the socket is open")
                .unwrap()
            {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    async fn text(&mut self) -> Value {
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?} is no text"),
        }
    }

    /// Output of one channel, then the last message and the code of the close frame.
    async fn finish(&mut self) -> (Vec<u8>, Value, u16) {
        let mut output = Vec::new();
        let last = loop {
            match self.next().await {
                Message::Binary(frame) => {
                    let part = Output::decode(&frame).unwrap();
                    assert_eq!(part.offset, output.len() as u64, "nothing is missing");
                    output.extend_from_slice(&part.data);
                }
                Message::Text(text) => break serde_json::from_str(&text).unwrap(),
                other => panic!("{other:?}"),
            }
        };
        match self.next().await {
            Message::Close(Some(frame)) => (output, last, frame.code.into()),
            other => panic!("{other:?} follows the end"),
        }
    }
}

fn stream(id: &str) -> String {
    format!("/v1/sandboxes/{id}/exec/stream")
}

#[tokio::test(flavor = "multi_thread")]
async fn command_is_followed_to_its_exit() {
    let api = Api::start().await;
    let id = api.create().await;
    let mut socket = Socket::open(&api, &stream(&id), Some(api.server.api_key()))
        .await
        .unwrap();
    let start = json!({"type": "start", "cmd": "sh", "args": ["-c", "cat; exit 5"],
        "stdin": true, "tag": "t"});
    socket.send(start).await;
    let started = socket.text().await;
    assert_eq!(
        (&started["type"], &started["tag"]),
        (&json!("started"), &json!("t"))
    );
    for word in ["one ", "two"] {
        socket
            .0
            .send(Message::binary(encode_input(word.as_bytes())))
            .await
            .unwrap();
    }
    socket.send(json!({"type": "eof"})).await;
    let (output, exit, close) = socket.finish().await;
    assert_eq!(output, b"one two");
    assert_eq!(
        (&exit["type"], &exit["code"], close),
        (&json!("exit"), &json!(5), 1000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_may_come_in_the_first_frame() {
    let api = Api::start().await;
    let id = api.create().await;
    let mut socket = Socket::open(&api, &stream(&id), None).await.unwrap();
    socket
        .send(json!({"type": "auth", "token": api.server.api_key()}))
        .await;
    socket.send(json!({"type": "start", "cmd": "true"})).await;
    assert_eq!(socket.text().await["type"], "started");
    assert_eq!(socket.finish().await.2, 1000);

    for first in [
        json!({"type": "auth", "token": "wrn_nonsense"}),
        json!({"type": "start", "cmd": "true"}),
    ] {
        let mut socket = Socket::open(&api, &stream(&id), None).await.unwrap();
        socket.send(first).await;
        let (_, error, close) = socket.finish().await;
        assert_eq!((&error["code"], close), (&json!("unauthorized"), 4401));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_format_carries_base64() {
    let api = Api::start().await;
    let id = api.create().await;
    let path = format!("{}?format=json", stream(&id));
    let mut socket = Socket::open(&api, &path, Some(api.server.api_key()))
        .await
        .unwrap();
    socket
        .send(json!({"type": "start", "cmd": "cat", "stdin": true}))
        .await;
    assert_eq!(socket.text().await["type"], "started");
    socket.send(json!({"type": "input", "data": "aGk="})).await;
    let output = socket.text().await;
    assert_eq!(
        (&output["channel"], &output["data"]),
        (&json!("stdout"), &json!("aGk="))
    );
    socket.send(json!({"type": "eof"})).await;
    assert_eq!(socket.text().await["type"], "exit");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_is_resized_and_signals_arrive() {
    let api = Api::start().await;
    let id = api.create().await;
    let mut socket = Socket::open(&api, &stream(&id), Some(api.server.api_key()))
        .await
        .unwrap();
    let script = "trap 'stty size; exit 7' WINCH; trap 'exit 9' USR1; echo ready; \
        while :; do sleep 0.05; done";
    socket
        .send(json!({"type": "start", "cmd": "sh", "args": ["-c", script],
            "tty": {"cols": 80, "rows": 24}}))
        .await;
    assert_eq!(socket.text().await["tty"], true);
    let Message::Binary(frame) = socket.next().await else {
        panic!("it prints")
    };
    assert!(frame.ends_with(b"ready\r\n"));
    socket
        .send(json!({"type": "resize", "cols": 100, "rows": 30}))
        .await;
    let mut printed = String::new();
    let exit = loop {
        match socket.next().await {
            Message::Binary(frame) => {
                printed.push_str(&String::from_utf8_lossy(
                    &Output::decode(&frame).unwrap().data,
                ));
            }
            Message::Text(text) => break serde_json::from_str::<Value>(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert!(printed.contains("30 100"), "{printed}");
    assert_eq!(exit["code"], 7);

    let mut socket = Socket::open(&api, &stream(&id), Some(api.server.api_key()))
        .await
        .unwrap();
    socket
        .send(json!({"type": "start", "cmd": "sleep", "args": ["60"]}))
        .await;
    socket.text().await;
    socket.send(json!({"type": "signal", "signal": 15})).await;
    let (_, exit, _) = socket.finish().await;
    assert_eq!((&exit["code"], &exit["signal"]), (&json!(143), &json!(15)));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_make_no_sense_end_the_stream() {
    let api = Api::start().await;
    let id = api.create().await;
    let key = api.server.api_key();
    for (first, words) in [
        ("{", "a message cannot be used"),
        (r#"{"type":"start","cmdd":"x"}"#, "unknown field `cmdd`"),
        (r#"{"type":"start"}"#, "'cmd' is empty"),
        (r#"{"type":"connect"}"#, "names no 'pid'"),
        (r#"{"type":"eof"}"#, "must be 'start' or 'connect'"),
    ] {
        let mut socket = Socket::open(&api, &stream(&id), Some(key)).await.unwrap();
        socket.0.send(Message::text(first)).await.unwrap();
        let (_, error, close) = socket.finish().await;
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert_eq!(close, 4400);
    }
    let mut socket = Socket::open(&api, &stream(&id), Some(key)).await.unwrap();
    socket
        .send(json!({"type": "connect", "pid": 999_999}))
        .await;
    let (_, error, close) = socket.finish().await;
    assert_eq!((&error["code"], close), (&json!("not_found"), 4404));
    let mut socket = Socket::open(&api, &stream(&id), Some(key)).await.unwrap();
    socket
        .send(json!({"type": "start", "cmd": "no-such-program"}))
        .await;
    let (_, exit, close) = socket.finish().await;
    assert_eq!((&exit["code"], close), (&json!(127), 1000), "{exit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_before_the_upgrade_has_a_status() {
    let api = Api::start().await;
    let key = api.server.api_key();
    let status = |error: Error| match error {
        Error::Http(response) => response.status().as_u16(),
        other => panic!("{other}"),
    };
    let missing = Socket::open(&api, &stream("nope"), Some(key)).await;
    assert_eq!(status(missing.err().unwrap()), 404);
    let id = api.create().await;
    let wrong = Socket::open(&api, &stream(&id), Some("wrn_0")).await;
    assert_eq!(status(wrong.err().unwrap()), 401);
    api.post(&format!("/v1/sandboxes/{id}/pause"), json!({}))
        .await
        .ok(200);
    let paused = Socket::open(&api, &stream(&id), Some(key)).await;
    assert_eq!(status(paused.err().unwrap()), 409);
}

/// The command has ended before its client reads: what the client sends meanwhile must not cost
/// it the rest of the output, and the exit.
#[tokio::test(flavor = "multi_thread")]
async fn exit_reaches_client_that_reads_late() {
    const SIZE: usize = 600 << 10;
    let api = Api::start().await;
    let id = api.create().await;
    let mut socket = Socket::open(
        &api,
        &format!("/v1/sandboxes/{id}/exec/stream"),
        Some(api.server.api_key()),
    )
    .await
    .unwrap();
    let script = format!("head -c {SIZE} /dev/zero");
    let start = json!({"type": "start", "cmd": "sh", "args": ["-c", script]});
    socket.send(start).await;
    assert_eq!(socket.text().await["type"], "started");
    let processes = format!("/v1/sandboxes/{id}/processes");
    let running = async || {
        let listed = api.get(&processes).await.ok(200);
        listed["items"].as_array().unwrap().len()
    };
    while running().await > 0 {}
    for _ in 0..50 {
        // As a browser that is busy answers pings.
        let pong = Message::Pong(vec![0; 8].into());
        socket.0.send(pong).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut bytes = 0;
    loop {
        match socket.next().await {
            Message::Binary(frame) => bytes += Output::decode(&frame).unwrap().data.len(),
            Message::Text(text) => {
                assert!(text.contains("\"exit\""), "{text}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bytes, SIZE);
}
