//! Lists of a host, and what must not be concluded from one: nothing is destroyed, and nothing
//! stopped, because a list is older than a row, short, or cut.

use serde_json::json;
use wrenn_proto::connectrpc::client::{ClientConfig, HttpClient};
use wrenn_proto::hostagent::{CreateSandboxRequest, HostAgentClient};
use wrenn_testing::proto::{ErrorCode, Reason, State};
use wrenn_testing::{Rpc, TestServer};

use crate::api::*;

/// Asserts that the sandbox runs, and that no call of the host destroyed anything.
async fn assert_unharmed(server: &TestServer, id: &str) {
    settles(server, id, "running").await;
    assert_eq!(server.host().state(id), Some(State::STATE_RUNNING));
    assert_eq!(server.host().calls(Rpc::DestroySandbox), 0);
    assert_eq!(server.host().calls(Rpc::PauseSandbox), 0);
}

#[tokio::test]
async fn list_between_creation_and_commit_harms_nothing() {
    let server = TestServer::start().await.unwrap();
    let gate = server.host().hold_answer(Rpc::CreateSandbox);
    let connection = Request::create().begin(&server).await;
    gate.reached().await;
    // The host has it, and its row is still pending.
    rounds(&server, 5).await;
    let id = server.host().sandboxes().pop().unwrap();
    assert_eq!(server.host().state(&id), Some(State::STATE_RUNNING));
    gate.release();
    let answer = read(connection).await;
    assert_eq!(
        (answer.status, answer.id()),
        (201, id.clone()),
        "{answer:?}"
    );
    assert_unharmed(&server, &id).await;
}

#[tokio::test]
async fn list_older_than_the_creation_harms_nothing() {
    let server = TestServer::start().await.unwrap();
    let gate = server.host().hold_answer(Rpc::ListSandboxes);
    gate.reached().await;
    // The list was taken, and is on its way.
    let id = create(&server).await;
    gate.release();
    rounds(&server, 5).await;
    assert_unharmed(&server, &id).await;
    assert_eq!(
        server.host().calls(Rpc::GetSandbox),
        0,
        "nothing was in doubt"
    );
}

#[tokio::test]
async fn list_older_than_a_resume_harms_nothing() {
    let server = TestServer::start().await.unwrap();
    let id = create(&server).await;
    let pause = Request::post(format!("/v1/sandboxes/{id}/pause"), json!({}));
    assert_eq!(pause.send(&server).await.status, 200);
    rounds(&server, 2).await;
    let gate = server.host().hold_answer(Rpc::ListSandboxes);
    gate.reached().await;
    let resume = Request::post(format!("/v1/sandboxes/{id}/resume"), json!({}));
    assert_eq!(resume.send(&server).await.status, 200);
    gate.release();
    rounds(&server, 3).await;
    assert_eq!(status(&server, &id).await.as_deref(), Some("running"));
    assert_eq!(server.host().state(&id), Some(State::STATE_RUNNING));
}

#[tokio::test]
async fn list_that_omits_a_sandbox_harms_nothing() {
    let server = TestServer::start().await.unwrap();
    let id = create(&server).await;
    rounds(&server, 2).await;
    server
        .host()
        .fault(Rpc::ListSandboxes)
        .times(4)
        .omit([id.clone()]);
    rounds(&server, 6).await;
    assert!(
        server.host().calls(Rpc::GetSandbox) > 0,
        "the host was asked by id"
    );
    assert_unharmed(&server, &id).await;
}

#[tokio::test]
async fn host_that_denies_a_sandbox_once_harms_nothing() {
    let server = TestServer::start().await.unwrap();
    let id = create(&server).await;
    rounds(&server, 2).await;
    server.host().fault(Rpc::ListSandboxes).omit([id.clone()]);
    server.host().fault(Rpc::GetSandbox).deny();
    rounds(&server, 4).await;
    assert_unharmed(&server, &id).await;
}

/// The host must deny it twice in a row: what it said long ago does not count.
#[tokio::test]
async fn denials_apart_harm_nothing() {
    let server = TestServer::start().await.unwrap();
    let id = create(&server).await;
    for _ in 0..3 {
        rounds(&server, 2).await;
        server.host().fault(Rpc::ListSandboxes).omit([id.clone()]);
        server.host().fault(Rpc::GetSandbox).deny();
        rounds(&server, 2).await;
    }
    assert_unharmed(&server, &id).await;
}

#[tokio::test]
async fn lists_that_fail_say_nothing() {
    let server = TestServer::start().await.unwrap();
    let id = create(&server).await;
    let fault = || server.host().fault(Rpc::ListSandboxes);
    fault().times(3).hang_up();
    fault().times(3).lose_answer();
    fault()
        .times(3)
        .fail(ErrorCode::Internal, Reason::REASON_INTERNAL);
    rounds(&server, 12).await;
    assert_unharmed(&server, &id).await;
}

#[tokio::test]
async fn vanished_sandbox_is_stopped_after_two_answers() {
    let server = TestServer::start().await.unwrap();
    let id = create(&server).await;
    rounds(&server, 2).await;
    server.host().vanish(&id).await;
    settles(&server, &id, "stopped").await;
    assert!(server.host().calls(Rpc::GetSandbox) >= 2);
}

#[tokio::test]
async fn other_root_directory_stops_nothing() {
    let server = TestServer::start().await.unwrap();
    let id = create(&server).await;
    rounds(&server, 2).await;
    server.host().wipe().await;
    settles(&server, &id, "missing").await;
    rounds(&server, 5).await;
    assert_eq!(status(&server, &id).await.as_deref(), Some("missing"));
}

#[tokio::test]
async fn unknown_sandbox_is_paused_and_not_destroyed() {
    let server = TestServer::start().await.unwrap();
    let host = server.host();
    let token = format!("Bearer {}", host.token().unwrap());
    let config = ClientConfig::new(host.url().parse().unwrap());
    let client = HostAgentClient::new(
        HttpClient::plaintext_http2_only(),
        config.with_default_header("authorization", token),
    );
    let id = "sb00000000000000000001";
    let request = CreateSandboxRequest {
        id: id.to_owned(),
        template: "base".to_owned(),
        ..Default::default()
    };
    client.create_sandbox(request).await.unwrap();
    host.wait_for_effects(Rpc::PauseSandbox, 1).await;
    rounds(&server, 3).await;
    assert_eq!(host.state(id), Some(State::STATE_PAUSED));
    assert_eq!(host.calls(Rpc::DestroySandbox), 0);
    assert_eq!(status(&server, id).await, None);
}

#[tokio::test]
async fn auto_pause_is_acknowledged_after_its_row() {
    let server = TestServer::start().await.unwrap();
    let id = create(&server).await;
    let gate = server.host().hold(Rpc::AcknowledgeAutoPaused);
    assert!(server.host().auto_pause(&id).await);
    gate.reached().await;
    assert_eq!(status(&server, &id).await.as_deref(), Some("paused"));
    gate.release();
    server
        .host()
        .wait_for_effects(Rpc::AcknowledgeAutoPaused, 1)
        .await;
}
