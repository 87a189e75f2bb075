use std::time::{Duration, Instant};

use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::hostagent::*;
use wrenn_testing::{FakeHost, Rpc};

use crate::client::*;

#[tokio::test]
async fn token_is_wanted() {
    let host = FakeHost::start().await.unwrap();
    for token in [None, Some("wrong")] {
        let stranger = with_token(&host, token);
        let error = stranger.get_host(GetHostRequest::default()).await;
        assert_error(
            &error.unwrap_err(),
            ErrorCode::Unauthenticated,
            Reason::REASON_UNAUTHENTICATED,
        );
        let request = WatchDirRequest::default();
        let error = match stranger.watch_dir(request).await {
            Ok(mut stream) => stream.message().await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.code, ErrorCode::Unauthenticated);
    }
    client(&host)
        .get_host(GetHostRequest::default())
        .await
        .unwrap();
    let open = FakeHost::builder().without_token().start().await.unwrap();
    let stranger = with_token(&open, None);
    stranger.get_host(GetHostRequest::default()).await.unwrap();
    assert_eq!(host.calls(Rpc::GetHost), 1, "strangers' calls do not count");
}

#[tokio::test]
async fn scripted_failure_has_no_effect() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    host.fault(Rpc::CreateSandbox)
        .times(2)
        .fail(ErrorCode::Internal, Reason::REASON_INTERNAL);
    for _ in 0..2 {
        let error = client.create_sandbox(create_request(1)).await.unwrap_err();
        assert_error(&error, ErrorCode::Internal, Reason::REASON_INTERNAL);
        assert!(host.sandboxes().is_empty());
    }
    create(&client, 1).await;
    host.fault(Rpc::GetSandbox).of(id(1)).deny();
    let error = get(&client, 1).await.unwrap_err();
    assert_error(
        &error,
        ErrorCode::NotFound,
        Reason::REASON_SANDBOX_NOT_FOUND,
    );
    get(&client, 1).await.unwrap();
    host.pretend(&id(1), State::STATE_ERROR, "broken");
    let told = get(&client, 1).await.unwrap();
    assert_eq!(told.state.as_known(), Some(State::STATE_ERROR));
    assert_eq!(told.reason, "broken");
    host.stop_pretending(&id(1));
    let told = get(&client, 1).await.unwrap();
    assert_eq!(told.state.as_known(), Some(State::STATE_RUNNING));
    host.fault(Rpc::ListSandboxes).omit([id(1)]);
    assert!(list(&client).await.sandboxes.is_empty());
    assert_eq!(list(&client).await.sandboxes.len(), 1);
}

#[tokio::test]
async fn held_call_waits_before_its_effect() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    let gate = host.hold(Rpc::CreateSandbox);
    let creating = tokio::spawn({
        let client = client.clone();
        async move { create(&client, 1).await }
    });
    gate.reached().await;
    assert!(host.sandboxes().is_empty());
    gate.release();
    creating.await.unwrap();
    assert_eq!(host.sandboxes(), [id(1)]);

    let gate = host.hold_answer(Rpc::PauseSandbox);
    let pausing = tokio::spawn({
        let client = client.clone();
        async move { pause(&client, 1).await }
    });
    gate.reached().await;
    assert_eq!(host.state(&id(1)), Some(State::STATE_PAUSED));
    assert!(!pausing.is_finished());
    drop(gate);
    pausing.await.unwrap().unwrap();
}

#[tokio::test]
async fn held_step_goes_on_without_its_caller() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let gate = host.hold(Rpc::PauseSandbox);
    let pausing = tokio::spawn({
        let client = client.clone();
        async move { pause(&client, 1).await }
    });
    gate.reached().await;
    pausing.abort();
    gate.release();
    host.wait_for_effects(Rpc::PauseSandbox, 1).await;
    assert_eq!(host.state(&id(1)), Some(State::STATE_PAUSED));
}

#[tokio::test]
async fn lost_answer_leaves_the_effect() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    host.fault(Rpc::CreateSandbox).lose_answer();
    client.create_sandbox(create_request(1)).await.unwrap_err();
    assert_eq!(host.sandboxes(), [id(1)]);
    host.fault(Rpc::PauseSandbox).hang_up();
    pause(&client, 1).await.unwrap_err();
    assert_eq!(host.state(&id(1)), Some(State::STATE_RUNNING));
    host.fault(Rpc::PauseSandbox).never_answer();
    let never = tokio::time::timeout(Duration::from_millis(200), pause(&client, 1));
    never.await.unwrap_err();
    host.wait_for_effects(Rpc::PauseSandbox, 2).await;
    assert_eq!(host.state(&id(1)), Some(State::STATE_PAUSED));
    let calls: Vec<Rpc> = host.log().into_iter().map(|call| call.rpc).collect();
    assert_eq!(
        calls,
        [Rpc::CreateSandbox, Rpc::PauseSandbox, Rpc::PauseSandbox]
    );
}

#[tokio::test]
async fn delayed_call_takes_its_time() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    let delay = Duration::from_millis(100);
    host.fault(Rpc::GetHost).after(1).delay(delay);
    client.get_host(GetHostRequest::default()).await.unwrap();
    let since = Instant::now();
    client.get_host(GetHostRequest::default()).await.unwrap();
    assert!(since.elapsed() >= delay);
}

#[tokio::test]
async fn cut_stream_breaks_after_messages() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    host.fault(Rpc::ExecStream).cut_after(2);
    let mut stream = client.exec_stream().await.unwrap();
    stream
        .send(start(1, shell("echo one; sleep 1000")))
        .await
        .unwrap();
    let mut told = Told::default();
    let error = loop {
        match stream.message().await {
            Ok(Some(message)) => told.take(message.to_owned_message()),
            Ok(None) => panic!("the stream breaks"),
            Err(error) => break error,
        }
    };
    assert_eq!(told.stdout, b"one\n");
    assert!(told.exit.is_none());
    assert!(wrenn_proto::reason::of(&error).is_none(), "{error:?}");
}

#[tokio::test]
async fn disconnected_host_comes_back_as_it_was() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let root_id = host.root_id();
    host.disconnect();
    client
        .get_host(GetHostRequest::default())
        .await
        .unwrap_err();
    client
        .get_host(GetHostRequest::default())
        .await
        .unwrap_err();
    host.reconnect();
    let again = async {
        while client.get_host(GetHostRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    assert_eq!(list(&client).await.root_id, root_id);
    assert_eq!(output(&client, 1, "echo here").await, "here");
    host.wipe().await;
    let listed = list(&client).await;
    assert_ne!(listed.root_id, root_id);
    assert!(listed.sandboxes.is_empty());
}
