//! A server in-process, through the SDK.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::time::Duration;

use wrenn_api::status::Status;
use wrenn_testing::{Rpc, TestServer};

#[tokio::test]
async fn sdk_runs_a_command_through_the_server() {
    let server = TestServer::start().await.unwrap();
    let client = server.sdk().unwrap();
    let sandbox = client.sandboxes().create("base").await.unwrap();
    sandbox.files().write("hello.txt", "hello\n").await.unwrap();
    let result = sandbox.exec("cat", ["hello.txt"]).await.unwrap();
    assert_eq!(result.stdout_text(), "hello\n");
    assert_eq!(server.host().calls(Rpc::CreateSandbox), 1);
    sandbox.destroy().await.unwrap();
    assert!(server.host().sandboxes().is_empty());
}

#[tokio::test]
async fn killed_server_finds_its_sandboxes_again() {
    let mut server = TestServer::start().await.unwrap();
    let url = server.url();
    let client = server.sdk().unwrap();
    let sandbox = client.sandboxes().create("base").await.unwrap();
    let gate = server.host().hold_answer(Rpc::PauseSandbox);
    let pausing = tokio::spawn({
        let mut sandbox = sandbox.clone();
        async move { sandbox.pause().await }
    });
    gate.reached().await;
    server.kill().await;
    assert!(client.server_info().await.is_err());
    pausing.abort();
    server.boot().await.unwrap();
    assert_eq!(server.url(), url);
    gate.release();
    client.server_info().await.unwrap();
    let mut found = client.sandboxes().get(sandbox.id().as_str()).await.unwrap();
    let paused = found
        .wait_for(Status::Paused, Duration::from_secs(60))
        .await;
    assert_eq!(paused.unwrap(), Status::Paused);
    found.resume().await.unwrap();
    server.restart().await.unwrap();
    let result = found.exec("echo", ["again"]).await.unwrap();
    assert_eq!(result.stdout_text(), "again\n");
}
