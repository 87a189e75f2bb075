//! Processes over the wire.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::time::Duration;

use common::{TestDaemon, follow, is_alive, selector, shell, until};
use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::connectrpc::client::CallOptions;
use wrenn_proto::hostagent::Reason;
use wrenn_proto::process::process_event::Event;
use wrenn_proto::process::process_input::Input;
use wrenn_proto::process::{
    CloseStdinRequest, ConnectRequest, ListRequest, PTY, ProcessInput, ProcessSelector,
    SendInputRequest, SendSignalRequest, Signal, StartRequest, UpdateRequest, process_selector,
    pty,
};
use wrenn_proto::reason;

#[tokio::test]
async fn runs_a_command_in_both_codecs() {
    let daemon = TestDaemon::start().await;
    for client in [daemon.processes(), daemon.json_processes()] {
        let stream = client
            .start(shell("echo out; echo err >&2; exit 3"))
            .await
            .unwrap();
        let told = follow!(stream).unwrap();
        assert_eq!(
            (told.stdout.as_slice(), told.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );
        assert_eq!(told.exit_code(), 3);
        assert!(told.ends[0].exited);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn gives_the_environment_of_a_login() {
    let daemon = TestDaemon::start().await;
    daemon.guest.change_settings(|settings| {
        settings.env.insert("FROM".to_owned(), "init".to_owned());
        settings.env.insert("BOTH".to_owned(), "init".to_owned());
    });
    let mut request = shell("echo $USER $LOGNAME $HOME $FROM $BOTH; pwd; umask");
    request.process.modify(|process| {
        process.envs.insert("BOTH".to_owned(), "request".to_owned());
        process.cwd = Some("/usr/../etc".to_owned());
    });
    let told = follow!(daemon.processes().start(request).await.unwrap()).unwrap();
    let user = common::own_user();
    let home = wrenn_envd::users::User::lookup(&user).unwrap().home;
    let expected = format!(
        "{user} {user} {} init request\n/etc\n0022\n",
        home.display()
    );
    assert_eq!(String::from_utf8(told.stdout).unwrap(), expected);
    daemon.stop().await;
}

#[tokio::test]
async fn refuses_what_cannot_start() {
    let daemon = TestDaemon::start().await;
    let client = daemon.processes();
    let code = async |request: StartRequest| match client.start(request).await {
        Ok(stream) => follow!(stream).unwrap_err().1.code,
        Err(error) => error.code,
    };
    assert_eq!(
        code(StartRequest::default()).await,
        ErrorCode::InvalidArgument
    );
    let mut request = shell("true");
    request
        .process
        .modify(|process| process.cmd = "/no/such/program".to_owned());
    assert_eq!(code(request).await, ErrorCode::InvalidArgument);
    let reason = async |program: &str| {
        let mut request = shell("true");
        request
            .process
            .modify(|process| process.cmd = program.to_owned());
        let error = match client.start(request).await {
            Ok(stream) => follow!(stream).unwrap_err().1,
            Err(error) => error,
        };
        reason::of(&error).unwrap().reason.as_known().unwrap()
    };
    for (program, expected) in [
        ("/no/such/program", Reason::REASON_COMMAND_NOT_FOUND),
        ("no-such-program", Reason::REASON_COMMAND_NOT_FOUND),
        ("/etc/passwd", Reason::REASON_COMMAND_NOT_EXECUTABLE),
        ("/etc", Reason::REASON_COMMAND_NOT_EXECUTABLE),
        ("/etc/passwd/x", Reason::REASON_COMMAND_NOT_EXECUTABLE),
    ] {
        assert_eq!(reason(program).await, expected, "{program}");
    }
    let mut request = shell("true");
    request
        .process
        .modify(|process| process.cwd = Some("/no/such/place".to_owned()));
    assert_eq!(code(request).await, ErrorCode::InvalidArgument);
    let mut request = shell("true");
    request
        .process
        .modify(|process| process.args.push("a\0b".to_owned()));
    assert_eq!(code(request).await, ErrorCode::InvalidArgument);

    // "nobody-knows-me:" as Basic.
    let options =
        CallOptions::default().with_header("authorization", "Basic bm9ib2R5LWtub3dzLW1lOg==");
    let error = match client.start_with_options(shell("true"), options).await {
        Ok(stream) => follow!(stream).unwrap_err().1,
        Err(error) => error,
    };
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    daemon.stop().await;
}

#[tokio::test]
async fn follows_chunks_no_larger_than_promised() {
    let daemon = TestDaemon::start().await;
    let stream = daemon
        .processes()
        .start(shell("head -c 1000000 /dev/zero"))
        .await
        .unwrap();
    let told = follow!(stream).unwrap();
    assert_eq!(told.stdout.len(), 1_000_000);
    assert!(told.largest <= 32 * 1024, "{}", told.largest);
    daemon.stop().await;
}

#[tokio::test]
async fn a_terminal_has_a_size_and_echoes() {
    let daemon = TestDaemon::start().await;
    let client = daemon.processes();
    let size = |cols, rows| PTY {
        size: pty::Size { cols, rows }.into(),
    };
    let mut request = shell("stty size; read x; stty size; echo got $x; tty >&2");
    request.pty = size(100, 40).into();
    let mut stream = client.start(request).await.unwrap();
    let mut told = common::Told::default();
    while !told.pty.ends_with(b"40 100\r\n") {
        let message = stream.message().await.unwrap().unwrap().to_owned_message();
        told.take(message.event.into_option().and_then(|event| event.event));
    }
    let resize = UpdateRequest {
        process: selector(told.pid).into(),
        pty: size(7, 5).into(),
    };
    client.update(resize).await.unwrap();
    let input = |input: Input| SendInputRequest {
        process: selector(told.pid).into(),
        input: ProcessInput { input: Some(input) }.into(),
    };
    let error = client
        .send_input(input(Input::Stdin("x".into())))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let error = client
        .close_stdin(CloseStdinRequest {
            process: selector(told.pid).into(),
        })
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    client
        .send_input(input(Input::Pty("line\n".into())))
        .await
        .unwrap();
    let rest = follow!(stream).unwrap();
    let shown = String::from_utf8(rest.pty.clone()).unwrap();
    assert!(shown.contains("5 7\r\ngot line\r\n/dev/pts/"), "{shown:?}");
    assert_eq!(rest.exit_code(), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn selects_by_tag_and_lists() {
    let daemon = TestDaemon::start().await;
    let client = daemon.processes();
    let mut request = shell("cat");
    request.tag = Some("my tag".to_owned());
    request.stdin = Some(true);
    let stream = client.start(request).await.unwrap();
    let list = client
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_owned();
    assert_eq!(list.processes.len(), 1);
    assert_eq!(list.processes[0].tag.as_deref(), Some("my tag"));
    assert_eq!(list.processes[0].config.args, ["-c", "cat"]);
    let by_tag = |tag: &str| ProcessSelector {
        selector: Some(process_selector::Selector::Tag(tag.to_owned())),
    };
    client
        .close_stdin(CloseStdinRequest {
            process: by_tag("my tag").into(),
        })
        .await
        .unwrap();
    assert_eq!(follow!(stream).unwrap().exit_code(), 0);

    let error = client
        .close_stdin(CloseStdinRequest {
            process: by_tag("my tag").into(),
        })
        .await
        .unwrap_err();
    assert_eq!(
        error.code,
        ErrorCode::NotFound,
        "an ended process takes no input"
    );
    let list = client
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_owned();
    assert!(list.processes.is_empty());

    // But it can be connected to for a while.
    let told = follow!(
        client
            .connect(ConnectRequest {
                process: by_tag("my tag").into(),
                ..Default::default()
            })
            .await
            .unwrap()
    );
    assert_eq!(told.unwrap().exit_code(), 0);
    let missing = ConnectRequest {
        process: by_tag("another").into(),
        ..Default::default()
    };
    let error = match client.connect(missing).await {
        Ok(stream) => follow!(stream).unwrap_err().1,
        Err(error) => error,
    };
    assert_eq!(error.code, ErrorCode::NotFound);
    daemon.stop().await;
}

#[tokio::test]
async fn input_waits_for_the_reader_and_end_of_input_comes_after_it() {
    let daemon = TestDaemon::start().await;
    let client = daemon.processes();
    let mut request = shell("sleep 0.3; sha256sum; cat");
    request.stdin = Some(true);
    let mut stream = client.start(request).await.unwrap();
    let first = stream.message().await.unwrap().unwrap().to_owned_message();
    let Some(Event::Start(start)) = first.event.into_option().and_then(|event| event.event) else {
        panic!("the first event is the start");
    };
    // Much more than a pipe holds.
    let data = vec![b'x'; 3_000_000];
    client
        .send_input(SendInputRequest {
            process: selector(start.pid).into(),
            input: ProcessInput {
                input: Some(Input::Stdin(data.into())),
            }
            .into(),
        })
        .await
        .unwrap();
    client
        .close_stdin(CloseStdinRequest {
            process: selector(start.pid).into(),
        })
        .await
        .unwrap();
    let told = follow!(stream).unwrap();
    let digest = "e55b8bdf621ddaa8f462c74745db9680d3bb7536a9cf854f8d6668b34a287890";
    assert_eq!(
        String::from_utf8(told.stdout.clone()).unwrap(),
        format!("{digest}  -\n")
    );
    assert_eq!(told.exit_code(), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn any_signal_can_be_sent() {
    let daemon = TestDaemon::start().await;
    let client = daemon.processes();
    let script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let mut stream = client.start(shell(script)).await.unwrap();
    let mut told = common::Told::default();
    while told.stdout != b"ready\n" {
        let message = stream.message().await.unwrap().unwrap().to_owned_message();
        told.take(message.event.into_option().and_then(|event| event.event));
    }
    let signal = |number: i32| SendSignalRequest {
        process: selector(told.pid).into(),
        signal: number.into(),
    };
    let error = client.send_signal(signal(0)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    client
        .send_signal(signal(Signal::SIGNAL_SIGINT as i32))
        .await
        .unwrap();
    let rest = follow!(stream).unwrap();
    assert_eq!(
        (rest.stdout.as_slice(), rest.exit_code()),
        (&b"interrupted\n"[..], 9)
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_deadline_kills_and_is_told_as_such() {
    let daemon = TestDaemon::start().await;
    let client = daemon.processes();
    let options = CallOptions::default().with_timeout(Duration::from_millis(700));
    let stream = client
        .start_with_options(shell("echo $$; sleep 1000"), options)
        .await
        .unwrap();
    let (told, error) = follow!(stream).unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(told.ends.is_empty());
    let pid = told.pid;
    until("the process is gone", || !is_alive(pid)).await;
    // Who connects now learns how it ended.
    let connected = follow!(
        client
            .connect(ConnectRequest {
                process: selector(pid).into(),
                ..Default::default()
            })
            .await
            .unwrap()
    );
    let end = connected.unwrap().ends.remove(0);
    assert_eq!(end.status, "signal: killed");
    assert_eq!((end.signal, end.deadline), (9, true));
    daemon.stop().await;
}

#[tokio::test]
async fn a_deadline_holds_even_when_the_client_has_left() {
    let daemon = TestDaemon::start().await;
    let client = daemon.processes();
    let options = CallOptions::default().with_timeout(Duration::from_millis(700));
    let mut stream = client
        .start_with_options(shell("sleep 1000"), options)
        .await
        .unwrap();
    let mut told = common::Told::default();
    let first = stream.message().await.unwrap().unwrap().to_owned_message();
    told.take(first.event.into_option().and_then(|event| event.event));
    drop(stream);
    assert!(is_alive(told.pid), "a client that leaves does not kill");
    until("the deadline has passed", || !is_alive(told.pid)).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_connection_has_its_own_deadline() {
    let daemon = TestDaemon::start().await;
    let client = daemon.processes();
    let mut stream = client
        .start(shell("read x < /dev/zero & sleep 1000"))
        .await
        .unwrap();
    let mut told = common::Told::default();
    let first = stream.message().await.unwrap().unwrap().to_owned_message();
    told.take(first.event.into_option().and_then(|event| event.event));
    let options = CallOptions::default().with_timeout(Duration::from_millis(300));
    let request = ConnectRequest {
        process: selector(told.pid).into(),
        ..Default::default()
    };
    let (_, error) =
        follow!(client.connect_with_options(request, options).await.unwrap()).unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(
        is_alive(told.pid),
        "it ends the connection and not the process"
    );
    daemon.stop().await;
    until("a daemon that stops takes its processes along", || {
        !is_alive(told.pid)
    })
    .await;
}

#[tokio::test]
async fn a_quiet_stream_is_kept_alive() {
    let daemon = TestDaemon::start().await;
    let options = CallOptions::default().with_header("keepalive-ping-interval", "1");
    let mut stream = daemon
        .processes()
        .start_with_options(shell("sleep 1000"), options)
        .await
        .unwrap();
    let wait = async {
        loop {
            let message = stream.message().await.unwrap().unwrap().to_owned_message();
            let event = message.event.into_option().and_then(|event| event.event);
            if matches!(event, Some(Event::Keepalive(_))) {
                break;
            }
        }
    };
    tokio::time::timeout(common::PATIENCE, wait).await.unwrap();
    daemon.stop().await;
}
