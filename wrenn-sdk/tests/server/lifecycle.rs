//! The lifecycle of a sandbox.

use std::time::Duration;

use wrenn_api::error::ErrorCode;
use wrenn_api::event::EventKind;
use wrenn_api::sandbox::UpdateSandbox;
use wrenn_api::status::Status;
use wrenn_sdk::{Client, CreateOptions, ForkOptions, ListOptions, SnapshotOptions};
use wrenn_testing::TestServer;

#[tokio::test]
async fn sandbox_goes_through_its_life() {
    let server = TestServer::start().await.unwrap();
    let client = server.sdk().unwrap();
    let options = CreateOptions::new()
        .name("web")
        .metadata("project", "shop")
        .env("GREETING", "hello")
        .idle_timeout(Duration::from_secs(3600));
    let mut sandbox = client.sandboxes().create(options).await.unwrap();
    assert_eq!(sandbox.status(), Status::Running);
    assert_eq!(sandbox.name(), Some("web"));
    assert_eq!(sandbox.info().timeout_sec, 3600);
    let greeting = sandbox.shell("echo $GREETING").await.unwrap();
    assert_eq!(greeting.stdout_text(), "hello\n");

    let sandboxes = client.sandboxes();
    let taken = sandboxes.create(CreateOptions::new().name("web")).await;
    assert!(taken.unwrap_err().is_conflict());

    sandbox.pause().await.unwrap();
    assert_eq!(sandbox.status(), Status::Paused);
    let refused = sandbox.shell("true").await.unwrap_err();
    assert!(refused.is_invalid_state(), "{refused}");
    assert_eq!(refused.detail("status").unwrap(), "paused");
    sandbox.resume().await.unwrap();
    assert_eq!(sandbox.status(), Status::Running);
    sandbox
        .ping_with_timeout(Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(sandbox.info().timeout_sec, 60);

    let change = UpdateSandbox {
        name: Some("shop".to_owned()),
        ..UpdateSandbox::default()
    };
    sandbox.update(&change).await.unwrap();
    let by_name = client.sandboxes().get("shop").await.unwrap();
    assert_eq!(by_name.id(), sandbox.id());

    assert_eq!(sandbox.metrics().await.unwrap().len(), 1);
    sandbox.logs().await.unwrap();
    let missing = sandbox.logs().start_command().await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    let start = sandbox.spawn("echo", ["serving"]).tag("start");
    let mut started = start.await.unwrap();
    while started.next().await.unwrap().is_some() {}
    let printed = sandbox.logs().start_command().await.unwrap();
    assert_eq!(printed, "serving\n");
    let mut followed = sandbox.logs().start_command().follow().await.unwrap();
    assert_eq!(followed.next().await.unwrap().unwrap(), "serving\n");
    assert_eq!(followed.next().await.unwrap(), None);
    assert!(sandbox.destroy().await.unwrap());
    let status = sandbox
        .wait_for(Status::Stopped, Duration::from_secs(10))
        .await;
    assert_eq!(status.unwrap(), Status::Stopped);
    assert!(
        client
            .sandboxes()
            .get("shop")
            .await
            .unwrap_err()
            .is_not_found()
    );
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let server = TestServer::start().await.unwrap();
    let client = server.sdk().unwrap();
    for number in 0..5 {
        let options = CreateOptions::new()
            .metadata("number", number.to_string())
            .metadata("odd", (number % 2).to_string());
        client.sandboxes().create(options).await.unwrap();
    }
    let sandboxes = client.sandboxes();
    let all = sandboxes.list(ListOptions::new().page_size(2)).all().await;
    assert_eq!(all.unwrap().len(), 5);
    let odd = ListOptions::new()
        .metadata("odd", "1")
        .status(Status::Running);
    assert_eq!(sandboxes.list(odd).all().await.unwrap().len(), 2);
    let none = ListOptions::new()
        .status(Status::Paused)
        .status(Status::Error);
    assert!(sandboxes.list(none).all().await.unwrap().is_empty());
}

#[tokio::test]
async fn forks_and_snapshots_are_used_like_templates() {
    let server = TestServer::start().await.unwrap();
    let client = server.sdk().unwrap();
    let sandbox = client.sandboxes().create("base").await.unwrap();
    sandbox.files().write("state", "warm").await.unwrap();
    let children = sandbox
        .fork(ForkOptions::new().count(2).names(["left", "right"]))
        .await
        .unwrap();
    for (child, name) in children.iter().zip(["left", "right"]) {
        let child = child.as_ref().unwrap();
        assert_eq!(child.name(), Some(name));
        assert_eq!(child.files().read_text("state").await.unwrap(), "warm");
    }
    let snapshot = sandbox.snapshot("warm").await.unwrap();
    assert_eq!(snapshot.reference(), "warm");
    let again = sandbox.snapshot("warm").await.unwrap_err();
    assert_eq!(again.code(), Some(ErrorCode::TemplateNameTaken));
    sandbox
        .snapshot(SnapshotOptions::from("warm").overwrite())
        .await
        .unwrap();
    let of_sandbox = client.snapshots().list_of(sandbox.id().as_str());
    assert_eq!(of_sandbox.all().await.unwrap().len(), 1);
    let restored = client.sandboxes().create("warm").await.unwrap();
    assert_eq!(restored.files().read_text("state").await.unwrap(), "warm");
    let templates = client.templates().list().all().await.unwrap();
    assert!(
        templates
            .iter()
            .any(|template| template.reference() == "base")
    );
    client.templates().get("base").await.unwrap();
    client.snapshots().delete("warm").await.unwrap();
    let gone = client.snapshots().delete("warm").await.unwrap_err();
    assert!(gone.is_not_found());
}

#[tokio::test]
async fn events_tell_changes() {
    let server = TestServer::start().await.unwrap();
    let client = server.sdk().unwrap();
    let mut events = client.events().after(0);
    let sandbox = client.sandboxes().create("base").await.unwrap();
    let mut seen = Vec::new();
    while !seen.contains(&(EventKind::SandboxStatus, Some(Status::Running))) {
        let next = tokio::time::timeout(Duration::from_secs(10), events.next());
        let event = next.await.unwrap().unwrap();
        if event.sandbox_id.as_ref() == Some(sandbox.id()) {
            seen.push((event.kind, event.status));
        }
    }
    assert_eq!(seen[0].0, EventKind::SandboxCreated);
}

#[tokio::test]
async fn wrong_key_is_refused_and_server_tells_itself() {
    let server = TestServer::start().await.unwrap();
    let stranger = Client::builder()
        .url(server.url())
        .key("wrn_0000000000000000000000000000000000000000")
        .build()
        .unwrap();
    let refused = stranger.sandboxes().get("web").await.unwrap_err();
    assert!(refused.is_unauthorized());
    assert!(refused.request_id().is_some());
    assert!(!stranger.server_info().await.unwrap().version.is_empty());
}
