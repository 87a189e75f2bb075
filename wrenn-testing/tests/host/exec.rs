use std::time::Duration;

use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::hostagent::__buffa::oneof::{connect_process_request, exec_stream_request};
use wrenn_proto::hostagent::*;
use wrenn_testing::FakeHost;

use crate::client::*;

#[tokio::test]
async fn exec_gives_output_and_exit_code() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let answer = exec(&client, 1, "echo out; echo err >&2; exit 3")
        .await
        .unwrap();
    assert_eq!(&answer.stdout[..], b"out\n");
    assert_eq!(&answer.stderr[..], b"err\n");
    assert_eq!((answer.exit.code, answer.exit.exited), (3, true));

    let answer = exec(&client, 1, "kill -9 $$").await.unwrap();
    assert_eq!((answer.exit.code, answer.exit.exited), (137, false));
    assert_eq!(answer.exit.signal, 9);

    let request = ExecRequest {
        id: id(1),
        command: shell("cat; echo end").into(),
        stdin: "some input\n".into(),
    };
    let answer = client.exec(request).await.unwrap().into_owned();
    assert_eq!(&answer.stdout[..], b"some input\nend\n");
}

#[tokio::test]
async fn exec_timeout_kills_the_command() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let request = ExecRequest {
        id: id(1),
        command: Command {
            timeout_sec: 1,
            ..shell("echo begun; sleep 1000")
        }
        .into(),
        ..Default::default()
    };
    let answer = client.exec(request).await.unwrap().into_owned();
    assert_eq!(&answer.stdout[..], b"begun\n");
    assert!(answer.exit.timed_out);
    assert_eq!(answer.exit.code, 137);
}

#[tokio::test]
async fn unknown_program_is_told_by_reason() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let request = ExecRequest {
        id: id(1),
        command: Command {
            program: "no-such-program".to_owned(),
            ..Default::default()
        }
        .into(),
        ..Default::default()
    };
    let error = client.exec(request).await.unwrap_err();
    assert_error(
        &error,
        ErrorCode::InvalidArgument,
        Reason::REASON_COMMAND_NOT_FOUND,
    );
    let error = exec(&client, 2, "true").await.unwrap_err();
    assert_error(
        &error,
        ErrorCode::NotFound,
        Reason::REASON_SANDBOX_NOT_FOUND,
    );
}

#[tokio::test]
async fn environment_of_the_sandbox_reaches_commands() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    let request = CreateSandboxRequest {
        env: std::iter::once(("GREETING".to_owned(), "hello".to_owned())).collect(),
        ..create_request(1)
    };
    client.create_sandbox(request).await.unwrap();
    assert_eq!(output(&client, 1, "echo $GREETING").await, "hello");
    let home = output(&client, 1, "echo $HOME; pwd").await;
    let (home, directory) = home.split_once('\n').unwrap();
    assert_eq!(home, directory);
}

#[tokio::test]
async fn stream_carries_input_and_output() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let mut stream = client.exec_stream().await.unwrap();
    let command = Command {
        stdin: true,
        ..shell("while read line; do echo \"got $line\"; done; echo done >&2")
    };
    stream.send(start(1, command)).await.unwrap();
    stream.send(input("a\n")).await.unwrap();
    stream.send(input("b\n")).await.unwrap();
    let close = exec_stream_request::Message::CloseInput(Box::default());
    let close = ExecStreamRequest {
        message: Some(close),
    };
    stream.send(close).await.unwrap();
    let mut told = Told::default();
    while let Some(message) = stream.message().await.unwrap() {
        told.take(message.to_owned_message());
    }
    assert!(told.pid() > 0);
    assert_eq!(told.stdout, b"got a\ngot b\n");
    assert_eq!(told.stderr, b"done\n");
    assert_eq!(told.exit.unwrap().code, 0);
}

#[tokio::test]
async fn terminal_has_a_size_that_changes() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let mut stream = client.exec_stream().await.unwrap();
    let size = TerminalSize { cols: 91, rows: 33 };
    let command = Command {
        terminal: size.into(),
        ..shell("tty >/dev/null && stty size; read line; stty size; echo \"<$line>\"")
    };
    stream.send(start(1, command)).await.unwrap();
    let mut told = Told::default();
    while !String::from_utf8_lossy(&told.terminal).contains("33 91") {
        let message = stream.message().await.unwrap().unwrap();
        told.take(message.to_owned_message());
    }
    let resize =
        exec_stream_request::Message::Resize(Box::new(TerminalSize { cols: 40, rows: 12 }));
    let resize = ExecStreamRequest {
        message: Some(resize),
    };
    stream.send(resize).await.unwrap();
    stream.send(input("word\n")).await.unwrap();
    while let Some(message) = stream.message().await.unwrap() {
        told.take(message.to_owned_message());
    }
    let printed = String::from_utf8_lossy(&told.terminal).into_owned();
    assert!(printed.contains("12 40"), "{printed}");
    assert!(printed.contains("<word>"), "{printed}");
}

#[tokio::test]
async fn command_outlives_its_caller() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let mut stream = client.exec_stream().await.unwrap();
    let command = Command {
        stdin: true,
        tag: "worker".to_owned(),
        ..shell("echo ready; read line; echo \"got $line\"")
    };
    stream.send(start(1, command)).await.unwrap();
    let mut told = Told::default();
    while told.stdout != b"ready\n" {
        let message = stream.message().await.unwrap().unwrap();
        told.take(message.to_owned_message());
    }
    let pid = told.pid();
    drop(stream);

    let listed = client.list_processes(ListProcessesRequest { id: id(1) });
    let listed = listed.await.unwrap().into_owned().processes;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].pid, listed[0].tag.as_str()), (pid, "worker"));

    let mut stream = client.connect_process().await.unwrap();
    let connect = connect_process_request::Message::Connect(Box::new(ProcessConnect {
        id: id(1),
        tag: "worker".to_owned(),
        ..Default::default()
    }));
    let message = |message| ConnectProcessRequest {
        message: Some(message),
    };
    stream.send(message(connect)).await.unwrap();
    let line = connect_process_request::Message::Input("x\n".into());
    stream.send(message(line)).await.unwrap();
    while let Some(message) = stream.message().await.unwrap() {
        told.take(message.to_owned_message());
    }
    assert_eq!(told.stdout, b"ready\ngot x\n");
    assert_eq!(told.exit.as_ref().unwrap().code, 0);
}

#[tokio::test]
async fn signal_ends_a_command() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let mut stream = client.exec_stream().await.unwrap();
    let command = Command {
        tag: "sleeper".to_owned(),
        ..shell("echo ready; sleep 1000")
    };
    stream.send(start(1, command)).await.unwrap();
    let mut told = Told::default();
    while told.stdout.is_empty() {
        let message = stream.message().await.unwrap().unwrap();
        told.take(message.to_owned_message());
    }
    let request = SignalProcessRequest {
        id: id(1),
        tag: "sleeper".to_owned(),
        signal: 15,
        ..Default::default()
    };
    client.signal_process(request).await.unwrap();
    while let Some(message) = stream.message().await.unwrap() {
        told.take(message.to_owned_message());
    }
    let exit = told.exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.exited), (143, 15, false));
    let request = SignalProcessRequest {
        id: id(1),
        pid: told.started.map_or(0, |_| 999_999_999),
        signal: 15,
        ..Default::default()
    };
    let error = client.signal_process(request).await.unwrap_err();
    assert_error(
        &error,
        ErrorCode::NotFound,
        Reason::REASON_PROCESS_NOT_FOUND,
    );
}

#[tokio::test]
async fn silent_stream_sends_keep_alives() {
    let host = FakeHost::builder()
        .keep_alive(Duration::from_millis(20))
        .start()
        .await
        .unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let mut stream = client.exec_stream().await.unwrap();
    stream.send(start(1, shell("sleep 1000"))).await.unwrap();
    let mut told = Told::default();
    while told.keep_alives < 2 {
        let message = stream.message().await.unwrap().unwrap();
        told.take(message.to_owned_message());
    }
}

#[tokio::test]
async fn delivered_output_comes_again_from_an_offset() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let mut stream = client.exec_stream().await.unwrap();
    let command = Command {
        stdin: true,
        tag: "worker".to_owned(),
        ..shell("printf 0123456789; read line; printf end")
    };
    stream.send(start(1, command)).await.unwrap();
    let mut told = Told::default();
    while told.stdout.len() < 10 {
        let message = stream.message().await.unwrap().unwrap();
        told.take(message.to_owned_message());
    }
    drop(stream);
    let mut stream = client.connect_process().await.unwrap();
    let message = |message| ConnectProcessRequest {
        message: Some(message),
    };
    let from = OutputOffsets {
        stdout: 4,
        ..Default::default()
    };
    let connect = connect_process_request::Message::Connect(Box::new(ProcessConnect {
        id: id(1),
        tag: "worker".to_owned(),
        from: from.into(),
        ..Default::default()
    }));
    stream.send(message(connect)).await.unwrap();
    let line = connect_process_request::Message::Input("x\n".into());
    stream.send(message(line)).await.unwrap();
    let mut again = Told {
        stdout: b"0123".to_vec(),
        ..Told::default()
    };
    while let Some(message) = stream.message().await.unwrap() {
        again.take(message.to_owned_message());
    }
    assert_eq!(again.pid(), told.pid());
    assert_eq!(again.stdout, b"0123456789end");
}
