use std::time::Duration;

use futures::future::join_all;
use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::hostagent::*;
use wrenn_proto::reason;
use wrenn_testing::{FakeHost, Rpc};

use crate::client::*;

#[tokio::test]
async fn same_create_gives_same_sandbox() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    let (one, two) = tokio::join!(create(&client, 1), create(&client, 1));
    assert_eq!(one.access_token, two.access_token);
    assert!(!one.access_token.is_empty());
    assert_eq!(one.resources.memory_mib, 512);
    assert!(one.phases_ms["total"] > 0.0);
    let other = CreateSandboxRequest {
        timeout_sec: 5,
        ..create_request(1)
    };
    let error = client.create_sandbox(other).await.unwrap_err();
    assert_error(&error, ErrorCode::AlreadyExists, Reason::REASON_EXISTS);
    let unknown = CreateSandboxRequest {
        template: "nope".to_owned(),
        ..create_request(2)
    };
    let error = client.create_sandbox(unknown).await.unwrap_err();
    assert_error(
        &error,
        ErrorCode::NotFound,
        Reason::REASON_TEMPLATE_NOT_FOUND,
    );
    let listed = list(&client).await;
    assert_eq!(listed.sandboxes.len(), 1);
    assert_eq!(listed.root_id, host.root_id());
    assert_eq!(listed.sandboxes[0].access_token, "");
}

#[tokio::test]
async fn paused_processes_go_on_after_resume() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    let created = create(&client, 1).await;
    write(&client, 1, "kept", b"file").await;
    output(
        &client,
        1,
        "nohup sh -c 'while :; do date +%s%N > tick; sleep 0.01; done' >/dev/null 2>&1 &",
    )
    .await;
    let tick = host.home(&id(1)).unwrap().join("tick");
    until("the process ticks", || tick.exists()).await;
    let mut stream = client.exec_stream().await.unwrap();
    stream.send(start(1, shell("sleep 1000"))).await.unwrap();
    stream.message().await.unwrap().unwrap();

    pause(&client, 1).await.unwrap();
    pause(&client, 1).await.unwrap();
    let error = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stream into a paused guest ends with an error"),
            Err(error) => break error,
        }
    };
    assert_error(
        &error,
        ErrorCode::FailedPrecondition,
        Reason::REASON_WRONG_STATE,
    );
    let paused = get(&client, 1).await.unwrap();
    assert_eq!(paused.state.as_known(), Some(State::STATE_PAUSED));
    assert_eq!(
        (paused.address.as_str(), paused.access_token.as_str()),
        ("", "")
    );
    let error = exec(&client, 1, "true").await.unwrap_err();
    let state = reason::of(&error).unwrap().state.as_known().unwrap();
    assert!(matches!(state, State::STATE_PAUSED | State::STATE_PAUSING));
    let before = std::fs::read(&tick).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(std::fs::read(&tick).unwrap(), before, "it is stopped");

    let resumed = resume(&client, 1).await.unwrap();
    assert_eq!(resumed.access_token, created.access_token);
    assert_eq!(resumed.state.as_known(), Some(State::STATE_RUNNING));
    until("the process ticks again", || {
        std::fs::read(&tick).is_ok_and(|now| now != before && !now.is_empty())
    })
    .await;
    assert_eq!(&read(&client, 1, "kept").await.unwrap()[..], b"file");
}

#[tokio::test]
async fn idle_sandbox_is_paused_until_acknowledged() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    let request = CreateSandboxRequest {
        timeout_sec: 60,
        ..create_request(1)
    };
    client.create_sandbox(request).await.unwrap();
    host.advance(Duration::from_secs(50)).await;
    assert_eq!(host.state(&id(1)), Some(State::STATE_RUNNING));
    output(&client, 1, "true").await;
    host.advance(Duration::from_secs(50)).await;
    assert_eq!(
        host.state(&id(1)),
        Some(State::STATE_RUNNING),
        "exec is use"
    );

    let mut stream = client.exec_stream().await.unwrap();
    stream.send(start(1, shell("sleep 1000"))).await.unwrap();
    stream.message().await.unwrap().unwrap();
    host.advance(Duration::from_secs(100)).await;
    assert_eq!(
        host.state(&id(1)),
        Some(State::STATE_RUNNING),
        "a stream is use"
    );
    drop(stream);
    until("the host sees the end of the stream", || {
        host.sandbox(&id(1))
            .is_some_and(|sandbox| sandbox.idle_ms > 0)
    })
    .await;

    host.advance(Duration::from_secs(50)).await;
    let request = GetMetricsRequest { id: id(1) };
    client.get_metrics(request).await.unwrap();
    list(&client).await;
    host.advance(Duration::from_secs(20)).await;
    assert_eq!(host.state(&id(1)), Some(State::STATE_PAUSED));
    assert_eq!(list(&client).await.auto_paused_sandbox_ids, [id(1)]);
    let request = AcknowledgeAutoPausedRequest {
        ids: vec![id(1), id(7)],
    };
    client.acknowledge_auto_paused(request).await.unwrap();
    assert!(list(&client).await.auto_paused_sandbox_ids.is_empty());
    resume(&client, 1).await.unwrap();
    assert!(host.auto_pause(&id(1)).await);
    assert_eq!(list(&client).await.auto_paused_sandbox_ids, [id(1)]);
}

#[tokio::test]
async fn fork_copies_files_and_has_own_token() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    let parent = create(&client, 1).await;
    write(&client, 1, "seed", b"parent").await;
    let request = ForkSandboxRequest {
        id: id(1),
        children: vec![id(2), id(3)],
    };
    let forked = client.fork_sandbox(request).await.unwrap().into_owned();
    assert_eq!(forked.sandboxes.len(), 2);
    assert!(forked.failed.is_empty());
    assert_ne!(forked.sandboxes[0].access_token, parent.access_token);
    assert_ne!(
        forked.sandboxes[0].access_token,
        forked.sandboxes[1].access_token
    );
    assert_eq!(&read(&client, 2, "seed").await.unwrap()[..], b"parent");
    write(&client, 2, "seed", b"child").await;
    assert_eq!(&read(&client, 1, "seed").await.unwrap()[..], b"parent");
    assert_eq!(&read(&client, 3, "seed").await.unwrap()[..], b"parent");
}

#[tokio::test]
async fn snapshot_is_a_template_of_fixed_size() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    let request = CreateSandboxRequest {
        resources: Resources {
            vcpus: 2,
            memory_mib: 256,
        }
        .into(),
        ..create_request(1)
    };
    client.create_sandbox(request).await.unwrap();
    write(&client, 1, "seed", b"snapshot").await;
    let snapshot = |name: &str| CreateSnapshotRequest {
        id: id(1),
        name: name.to_owned(),
    };
    client.create_snapshot(snapshot("warm")).await.unwrap();
    let error = client.create_snapshot(snapshot("warm")).await.unwrap_err();
    assert_error(&error, ErrorCode::AlreadyExists, Reason::REASON_EXISTS);
    let error = client.create_snapshot(snapshot("base")).await.unwrap_err();
    assert_error(&error, ErrorCode::AlreadyExists, Reason::REASON_EXISTS);

    let of_it = CreateSandboxRequest {
        template: "warm".to_owned(),
        ..create_request(2)
    };
    let created = client.create_sandbox(of_it).await.unwrap().into_owned();
    assert_eq!(created.sandbox.resources.vcpus, 2);
    assert_eq!(&read(&client, 2, "seed").await.unwrap()[..], b"snapshot");
    let larger = CreateSandboxRequest {
        template: "warm".to_owned(),
        resources: Resources {
            vcpus: 4,
            memory_mib: 0,
        }
        .into(),
        ..create_request(3)
    };
    let error = client.create_sandbox(larger).await.unwrap_err();
    assert_error(&error, ErrorCode::InvalidArgument, Reason::REASON_INVALID);

    let listed = client.list_snapshots(ListSnapshotsRequest::default());
    let listed = listed.await.unwrap().into_owned().snapshots;
    assert_eq!(
        (listed[0].name.as_str(), listed[0].source.as_str()),
        ("warm", id(1).as_str())
    );
    let request = DeleteSnapshotRequest {
        name: "warm".to_owned(),
    };
    let deleted = client.delete_snapshot(request.clone()).await.unwrap();
    assert_eq!(deleted.into_owned().still_needed_by, [id(2)]);
    let error = client.delete_snapshot(request).await.unwrap_err();
    assert_error(
        &error,
        ErrorCode::NotFound,
        Reason::REASON_SNAPSHOT_NOT_FOUND,
    );
}

#[tokio::test]
async fn full_host_refuses_until_one_pauses() {
    let host = FakeHost::builder().max_sandboxes(1).start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let error = client.create_sandbox(create_request(2)).await.unwrap_err();
    assert_error(
        &error,
        ErrorCode::ResourceExhausted,
        Reason::REASON_HOST_FULL,
    );
    pause(&client, 1).await.unwrap();
    create(&client, 2).await;
    let error = resume(&client, 1).await.unwrap_err();
    assert_error(
        &error,
        ErrorCode::ResourceExhausted,
        Reason::REASON_HOST_FULL,
    );
    assert_eq!(host.state(&id(1)), Some(State::STATE_PAUSED));
}

#[tokio::test]
async fn broken_sandbox_can_only_be_destroyed() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    host.break_sandbox(&id(1), "its VM ended (signal 9)").await;
    let broken = get(&client, 1).await.unwrap();
    assert_eq!(broken.state.as_known(), Some(State::STATE_ERROR));
    assert_eq!(broken.reason, "its VM ended (signal 9)");
    for error in [
        pause(&client, 1).await.unwrap_err(),
        resume(&client, 1).await.unwrap_err(),
        exec(&client, 1, "true").await.unwrap_err(),
    ] {
        let info = reason::of(&error).unwrap();
        assert_eq!(info.state.as_known(), Some(State::STATE_ERROR));
    }
    destroy(&client, 1).await.unwrap();
    destroy(&client, 1).await.unwrap();
    assert!(host.sandboxes().is_empty());
}

#[tokio::test]
async fn twenty_sandboxes_run_at_once() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    join_all((1..=20).map(|number| create(&client, number))).await;
    let outputs = join_all((1..=20).map(|number| {
        let client = &client;
        async move {
            write(client, number, "name", b"file").await;
            output(client, number, &format!("cat name; echo {number}")).await
        }
    }))
    .await;
    for (number, output) in (1..=20).zip(outputs) {
        assert_eq!(output, format!("file{number}"));
    }
    let paused = client.pause_all(PauseAllRequest::default()).await.unwrap();
    assert_eq!(paused.into_owned().paused.len(), 20);
    join_all((1..=20).map(|number| destroy(&client, number))).await;
    assert!(host.sandboxes().is_empty());
    assert_eq!(host.calls(Rpc::DestroySandbox), 20);
}

#[tokio::test]
async fn console_is_followed_until_the_end() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let request = FollowConsoleRequest {
        id: id(1),
        from_start: true,
        ..Default::default()
    };
    let mut stream = client.follow_console(request).await.unwrap();
    let first = stream.message().await.unwrap().unwrap().to_owned_message();
    assert!(first.data.starts_with(b"fake host"));
    host.write_console(&id(1), b"more\n");
    let next = stream.message().await.unwrap().unwrap().to_owned_message();
    assert_eq!(&next.data[..], b"more\n");
    let request = GetConsoleRequest {
        id: id(1),
        max_bytes: 5,
        ..Default::default()
    };
    let end = client.get_console(request).await.unwrap().into_owned();
    assert_eq!(&end.data[..], b"more\n");
    destroy(&client, 1).await.unwrap();
    assert!(stream.message().await.unwrap().is_none());
}
