use std::sync::mpsc::channel;
use std::thread;

use super::*;
use crate::api::controller::ActionError;

/// A server whose main thread says yes to everything but a pause.
fn serve(path: &Path) {
    let (actions, action_receiver) = channel();
    let (answer_sender, answers) = channel();
    let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let server = ApiServer::bind(
        path,
        Channel {
            actions,
            answers,
            wake,
        },
    )
    .unwrap();
    thread::spawn(move || server.run());
    thread::spawn(move || {
        for action in action_receiver {
            let answer = match action {
                Action::GetVersion => Ok(Some("{}".to_owned())),
                Action::Pause => Err(ActionError::NotStarted),
                _ => Ok(None),
            };
            answer_sender.send(answer).unwrap();
        }
    });
}

fn ask(stream: &mut UnixStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    receive(stream)
}

/// One answer, told apart from the next by its length.
fn receive(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        text.push(char::from(byte[0]));
    }
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    text + std::str::from_utf8(&body).unwrap()
}

const PAUSE: &str = "PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}";
const VERSION: &str = "GET /version HTTP/1.1\r\n\r\n";

#[test]
fn one_connection_carries_many_requests() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api");
    serve(&path);
    let mut stream = UnixStream::connect(&path).unwrap();
    for _ in 0..3 {
        assert!(ask(&mut stream, VERSION).starts_with("HTTP/1.1 200 OK\r\n"));
        let refused = ask(&mut stream, PAUSE);
        assert!(
            refused.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{refused}"
        );
        assert!(refused.contains("fault_message"), "{refused}");
    }
    // Two at once are answered in order.
    let first = ask(&mut stream, &format!("{VERSION}{PAUSE}"));
    assert!(first.starts_with("HTTP/1.1 200"));
    assert!(receive(&mut stream).starts_with("HTTP/1.1 400"));
}

#[test]
fn client_may_wait_before_it_sends_the_body() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api");
    serve(&path);
    let mut stream = UnixStream::connect(&path).unwrap();
    let head = "PUT /entropy HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(ask(&mut stream, head), "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(ask(&mut stream, "{}").starts_with("HTTP/1.1 204 No Content\r\n"));
}

#[test]
fn nonsense_ends_its_own_connection_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api");
    serve(&path);
    let mut good = UnixStream::connect(&path).unwrap();
    let mut bad = UnixStream::connect(&path).unwrap();
    let answer = ask(&mut bad, "\u{1}\u{2}\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(bad.read(&mut [0]).unwrap(), 0);
    assert!(ask(&mut good, VERSION).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_connection_too_many_is_closed_and_room_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api");
    serve(&path);
    let mut clients: Vec<_> = (0..CONNECTIONS_MAX)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            assert!(ask(&mut stream, VERSION).starts_with("HTTP/1.1 200"));
            stream
        })
        .collect();
    let mut extra = UnixStream::connect(&path).unwrap();
    assert_eq!(extra.read(&mut [0]).unwrap(), 0);

    drop(clients.pop());
    // The server notices the end on its next turn.
    let served = (0..1000).any(|_| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(VERSION.as_bytes()).is_ok() && matches!(stream.read(&mut [0]), Ok(1))
    });
    assert!(served);
}

#[test]
fn socket_that_exists_is_not_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api");
    serve(&path);
    let (actions, _actions) = channel();
    let (_answers, answers) = channel();
    let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let error = ApiServer::bind(
        &path,
        Channel {
            actions,
            answers,
            wake,
        },
    )
    .err()
    .unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
}
