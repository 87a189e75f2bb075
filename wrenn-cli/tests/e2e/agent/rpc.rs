//! Sandboxes and commands by RPC.

use std::time::Duration;

use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::hostagent::__buffa::oneof::process_event::Event;
use wrenn_proto::hostagent::*;

use super::stage::{
    Followed, enter, enter_with, next, plain_events, read_all, read_until, refused, sh, small,
    started,
};
use crate::stage::until;

#[test]
fn a_sandbox_is_created_found_used_and_destroyed() {
    enter(|agent| async move {
        let client = agent.client();
        let request = CreateSandboxRequest {
            env: [("GREETING".to_owned(), "hello".to_owned())]
                .into_iter()
                .collect(),
            metadata: [("owner".to_owned(), "me".to_owned())]
                .into_iter()
                .collect(),
            timeout_sec: 600,
            ..small()
        };
        let id = request.id.clone();
        // Twice at once and once more: one sandbox.
        let (first, second) = tokio::join!(
            client.create_sandbox(request.clone()),
            client.create_sandbox(request.clone())
        );
        let third = client.create_sandbox(request.clone()).await;
        let tokens = [first, second, third].map(|answer| {
            let sandbox = answer.unwrap().into_owned().sandbox.into_option().unwrap();
            assert_eq!(sandbox.id, id);
            assert_eq!(sandbox.state.as_known(), Some(State::STATE_RUNNING));
            assert_eq!(sandbox.metadata["owner"], "me");
            assert!(sandbox.phases_ms["total"] > 0.0, "{sandbox:?}");
            assert!(!sandbox.address.is_empty());
            sandbox.access_token
        });
        assert!(tokens[0].len() > 30 && tokens.iter().all(|token| *token == tokens[0]));
        let other = CreateSandboxRequest {
            template: "base".to_owned(),
            ..request
        };
        refused(
            client.create_sandbox(other).await,
            ErrorCode::AlreadyExists,
            "with other properties",
        );
        assert_eq!(agent.shell(&id, "echo $GREETING").await, "hello");

        let listed = client.list_sandboxes(ListSandboxesRequest::default()).await;
        let listed = listed.unwrap().into_owned().sandboxes;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].access_token, "", "a list shows no secrets");
        let host = client.get_host(GetHostRequest::default()).await;
        let host = host.unwrap().into_owned();
        assert_eq!((host.sandboxes, host.vcpus), (1, 1));
        assert!(host.templates.contains(&"minimal".to_owned()));

        let ping = PingSandboxRequest {
            id: id.clone(),
            timeout_sec: Some(30),
        };
        let pinged = client.ping_sandbox(ping).await.unwrap().into_owned();
        assert_eq!(pinged.sandbox.as_option().unwrap().timeout_sec, 30);

        let metrics = client
            .get_metrics(GetMetricsRequest { id: id.clone() })
            .await;
        let metrics = metrics.unwrap().into_owned();
        assert!(metrics.cpu_seconds > 0.0, "{metrics:?}");
        assert!(metrics.memory_bytes > 8 << 20, "{metrics:?}");
        assert!(metrics.disk_bytes > 0, "{metrics:?}");
        assert!(metrics.guest_memory_total_bytes > 64 << 20, "{metrics:?}");
        assert!(metrics.guest_disk_total_bytes > 64 << 20, "{metrics:?}");

        let request = DestroySandboxRequest { id: id.clone() };
        client.destroy_sandbox(request.clone()).await.unwrap();
        client.destroy_sandbox(request).await.unwrap();
        refused(
            client.get_sandbox(GetSandboxRequest { id }).await,
            ErrorCode::NotFound,
            "there is no sandbox",
        );
    });
}

#[test]
fn what_cannot_be_had_is_refused_and_takes_nothing() {
    enter_with(&["--max-vcpus", "1"], |agent| async move {
        let client = agent.client();
        let request = CreateSandboxRequest {
            template: "no-such".to_owned(),
            ..small()
        };
        refused(
            client.create_sandbox(request).await,
            ErrorCode::NotFound,
            "minimal",
        );
        let first = agent.create().await;
        refused(
            client.create_sandbox(small()).await,
            ErrorCode::ResourceExhausted,
            "0 of this host's 1 are free",
        );
        let request = DestroySandboxRequest { id: first.id };
        client.destroy_sandbox(request).await.unwrap();
        agent.create().await;
    });
}

#[test]
fn commands_have_input_output_and_one_end() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let client = agent.client();

        // Whole: streams apart, the exit code, input.
        let answer = agent
            .exec(&id, "echo out; echo err >&2; exit 3")
            .await
            .unwrap();
        assert_eq!(&answer.stdout[..], b"out\n");
        assert_eq!(&answer.stderr[..], b"err\n");
        assert_eq!(answer.exit.as_option().unwrap().code, 3);
        let request = ExecRequest {
            id: id.clone(),
            command: Some(sh("wc -c")).into(),
            stdin: vec![b'x'; 1 << 20].into(),
        };
        let answer = client.exec(request).await.unwrap().into_owned();
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "1048576");
        let killed = agent.exec(&id, "kill -9 $$").await.unwrap();
        let exit = killed.exit.as_option().unwrap();
        assert_eq!((exit.code, exit.exited), (137, false));
        assert_eq!((exit.signal, exit.timed_out), (9, false));
        refused(
            agent
                .exec(
                    &id,
                    "dd if=/dev/zero bs=1M count=20 2>/dev/null; sleep 1000",
                )
                .await,
            ErrorCode::ResourceExhausted,
            "use ExecStream",
        );
        until("what printed too much is gone", || async {
            agent.shell(&id, "pidof sleep || echo none").await == "none"
        })
        .await;
        let nobody = Command {
            program: "no-such-program".to_owned(),
            ..Command::default()
        };
        let request = ExecRequest {
            id: id.clone(),
            command: Some(nobody).into(),
            ..ExecRequest::default()
        };
        refused(
            client.exec(request).await,
            ErrorCode::InvalidArgument,
            "no-such-program",
        );
        let request = ExecRequest {
            id: id.clone(),
            command: Some(Command {
                timeout_sec: 1,
                ..sh("sleep 1000")
            })
            .into(),
            ..ExecRequest::default()
        };
        let late = client.exec(request).await.unwrap().into_owned();
        let exit = late.exit.into_option().unwrap();
        assert_eq!(exit.code, 137);
        assert!(exit.error.contains("deadline"), "{exit:?}");

        // Followed: input bit by bit, its end, one exit.
        let command = Command {
            stdin: true,
            ..sh("cat; echo done >&2; exit 4")
        };
        let mut followed = Followed::start(&agent, &id, command).await;
        followed.input("first ").await;
        followed.read_until("first ").await;
        followed.input("second").await;
        let close = Some(CloseInput::default().into());
        followed
            .up
            .send(ExecStreamRequest { message: close })
            .await
            .unwrap();
        let (stdout, stderr, exit) = read_all(&mut followed.down).await;
        assert_eq!((&stdout[..], &stderr[..]), (&b"second"[..], &b"done\n"[..]));
        assert_eq!((exit.code, exit.exited), (4, true));
    });
}

#[test]
fn a_terminal_follows_its_size_and_outlives_its_caller() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let client = agent.client();
        let command = Command {
            terminal: Some(TerminalSize {
                cols: 101,
                rows: 37,
            })
            .into(),
            stdin: true,
            tag: "shell".to_owned(),
            program: "sh".to_owned(),
            ..Command::default()
        };
        let mut followed = Followed::start(&agent, &id, command).await;
        let pid = followed.pid;
        followed.input("stty size\r").await;
        followed.read_until("37 101").await;
        let size = TerminalSize { cols: 90, rows: 20 };
        let resize = Some(size.into());
        followed
            .up
            .send(ExecStreamRequest { message: resize })
            .await
            .unwrap();
        followed.input("stty size\r").await;
        followed.read_until("20 90").await;
        drop(followed);

        let listed = client
            .list_processes(ListProcessesRequest { id: id.clone() })
            .await;
        let listed = listed.unwrap().into_owned().processes;
        let shell = listed.iter().find(|process| process.pid == pid);
        assert_eq!(shell.expect("it still runs").tag, "shell");

        // Another joins it by its tag, and its input goes to the terminal as before.
        let (mut up, receive) = client.connect_process().await.unwrap().into_split();
        let connect = ProcessConnect {
            id: id.clone(),
            tag: "shell".to_owned(),
            ..ProcessConnect::default()
        };
        let message = Some(connect.into());
        up.send(ConnectProcessRequest { message }).await.unwrap();
        let mut down = plain_events!(receive);
        assert_eq!(started(&mut down).await, pid);
        use __buffa::oneof::connect_process_request::Message;
        let message = Some(Message::Input("echo still-$((40 + 2))\r".into()));
        up.send(ConnectProcessRequest { message }).await.unwrap();
        read_until(&mut down, "still-42").await;

        let signal = SignalProcessRequest {
            id: id.clone(),
            tag: "shell".to_owned(),
            signal: 9,
            ..SignalProcessRequest::default()
        };
        client.signal_process(signal.clone()).await.unwrap();
        let (_, _, exit) = read_all(&mut down).await;
        assert_eq!((exit.code, exit.exited), (137, false));
        refused(
            client.signal_process(signal).await,
            ErrorCode::NotFound,
            "not found",
        );

        let (mut up, mut receive) = client.connect_process().await.unwrap().into_split();
        let connect = ProcessConnect {
            id,
            pid: 999_999,
            ..ProcessConnect::default()
        };
        let message = Some(connect.into());
        up.send(ConnectProcessRequest { message }).await.unwrap();
        refused(receive.message().await, ErrorCode::NotFound, "not found");
    });
}

/// The output of a command that a caller has.
#[derive(Default)]
struct Received {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<ExitStatus>,
}

impl Received {
    fn take(&mut self, message: ProcessEvent) {
        let channel = match &message.event {
            Some(Event::Stdout(_)) => &mut self.stdout,
            Some(Event::Stderr(_)) => &mut self.stderr,
            Some(Event::Exit(exit)) => {
                self.exit = Some((**exit).clone());
                return;
            }
            _ => return,
        };
        assert_eq!(message.offset, channel.len() as u64, "lost or twice");
        if let Some(Event::Stdout(bytes) | Event::Stderr(bytes)) = &message.event {
            channel.extend_from_slice(bytes);
        }
    }

    fn offsets(&self) -> OutputOffsets {
        OutputOffsets {
            stdout: self.stdout.len() as u64,
            stderr: self.stderr.len() as u64,
            terminal: 0,
        }
    }
}

#[test]
fn output_survives_broken_connections() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let line = "dd if=/dev/urandom of=/tmp/x bs=1M count=6 2>/dev/null; \
                    sha256sum /tmp/x >&2; cat /tmp/x; exit 3";
        let command = Command {
            tag: "flood".to_owned(),
            ..sh(line)
        };
        drop(Followed::start(&agent, &id, command).await);
        let mut received = Received::default();
        let mut connections = 0;
        while received.exit.is_none() {
            connections += 1;
            // A client of its own, whose connection goes with it.
            let client = agent.client();
            let (mut up, mut down) = client.connect_process().await.unwrap().into_split();
            let connect = ProcessConnect {
                id: id.clone(),
                tag: "flood".to_owned(),
                from: Some(received.offsets()).into(),
                ..ProcessConnect::default()
            };
            let message = Some(connect.into());
            up.send(ConnectProcessRequest { message }).await.unwrap();
            // Each breaks off after some messages, with others on their way.
            let until = received.stdout.len() + (1 << 20);
            while received.exit.is_none() && received.stdout.len() < until {
                let message = down.message().await.unwrap().expect("it goes on");
                received.take(message.to_owned_message());
            }
        }
        assert!(connections > 4, "{connections}");
        assert_eq!(received.exit.unwrap().code, 3);
        assert_eq!(received.stdout.len(), 6 << 20);
        let sum = String::from_utf8(received.stderr).unwrap();
        assert_eq!(
            sum.split(' ').next(),
            Some(super::files::sha256(&received.stdout).as_str())
        );
    });
}

#[test]
fn errors_of_guests_tell_their_reason() {
    use wrenn_proto::reason;
    enter(|agent| async move {
        let id = agent.create().await.id;
        let client = agent.client();
        let reason = |error: wrenn_proto::connectrpc::ConnectError| {
            reason::of(&error).unwrap().reason.as_known().unwrap()
        };
        for (program, expected) in [
            ("no-such-program", Reason::REASON_COMMAND_NOT_FOUND),
            ("/etc/passwd", Reason::REASON_COMMAND_NOT_EXECUTABLE),
        ] {
            let command = Command {
                program: program.to_owned(),
                ..Command::default()
            };
            let request = ExecRequest {
                id: id.clone(),
                command: Some(command).into(),
                ..ExecRequest::default()
            };
            let error = client.exec(request).await.err().unwrap();
            assert_eq!(reason(error), expected, "{program}");
        }
        let missing = StatRequest {
            id: id.clone(),
            path: "/no/such".to_owned(),
            ..StatRequest::default()
        };
        let error = client.stat(missing).await.err().unwrap();
        assert_eq!(reason(error), Reason::REASON_PATH_NOT_FOUND);
        let missing = ReadFileRequest {
            id: id.clone(),
            path: "/no/such".to_owned(),
            ..ReadFileRequest::default()
        };
        let error = client.read_file(missing).await.err().unwrap();
        assert_eq!(reason(error), Reason::REASON_PATH_NOT_FOUND);
        let missing = SignalProcessRequest {
            id,
            tag: "nobody".to_owned(),
            signal: 9,
            ..SignalProcessRequest::default()
        };
        let error = client.signal_process(missing).await.err().unwrap();
        assert_eq!(reason(error), Reason::REASON_PROCESS_NOT_FOUND);
    });
}

#[test]
fn a_silent_stream_is_use_and_is_kept_alive() {
    enter(|agent| async move {
        use futures::StreamExt as _;
        let id = agent.create().await.id;
        let mut followed = Followed::start(&agent, &id, sh("sleep 1000")).await;
        // The agent sends one after 30 s of silence.
        let event = followed.down.next().await.unwrap().unwrap();
        assert!(matches!(event, Event::KeepAlive(_)), "{event:?}");
        let request = GetSandboxRequest { id: id.clone() };
        let sandbox = agent.client().get_sandbox(request.clone()).await.unwrap();
        assert_eq!(sandbox.into_owned().sandbox.as_option().unwrap().idle_ms, 0);
        drop(followed);
        until("the sandbox is idle", || async {
            let sandbox = agent.client().get_sandbox(request.clone()).await.unwrap();
            sandbox.into_owned().sandbox.as_option().unwrap().idle_ms > 0
        })
        .await;
    });
}

#[test]
fn a_slow_reader_loses_nothing_and_stops_nobody_else() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let line = "dd if=/dev/urandom of=/tmp/x bs=1M count=8 2>/dev/null; \
                    sha256sum /tmp/x >&2; cat /tmp/x";
        let mut slow = Followed::start(&agent, &id, sh(line)).await;
        // Its output fills every buffer on the way while others go on as usual.
        for round in 0..3 {
            assert_eq!(
                agent.shell(&id, &format!("echo {round}")).await,
                round.to_string()
            );
        }
        let (mut bytes, mut sum) = (Vec::new(), Vec::new());
        loop {
            match next(&mut slow.down).await.unwrap() {
                Event::Stdout(chunk) => {
                    bytes.extend_from_slice(&chunk);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Event::Stderr(chunk) => sum.extend_from_slice(&chunk),
                Event::Exit(exit) => {
                    assert_eq!(exit.code, 0);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(bytes.len(), 8 << 20);
        let sum = String::from_utf8(sum).unwrap();
        assert_eq!(
            sum.split(' ').next(),
            Some(super::files::sha256(&bytes).as_str())
        );
    });
}
