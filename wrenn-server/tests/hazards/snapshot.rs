//! A snapshot that its host finishes after the server gave it up.

use std::time::{Duration, Instant};

use serde_json::json;
use wrenn_testing::{Rpc, TestServer};

use crate::api::*;

fn snapshot_of(id: &str) -> Request {
    Request::post("/v1/snapshots", json!({"sandbox_id": id}))
}

/// Waits until the host has these snapshots alone.
async fn assert_left(server: &TestServer, expected: &[String]) {
    let since = Instant::now();
    while server.host().snapshots() != expected {
        let left = server.host().snapshots();
        assert!(since.elapsed() < PATIENCE, "{left:?} and not {expected:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn snapshot_finished_after_its_cleanup_is_deleted() {
    let mut server = start_settling_soon().await;
    let id = create(&server).await;
    let kept = snapshot_of(&id).send(&server).await.id();
    let gate = server.host().hold(Rpc::CreateSnapshot);
    let connection = snapshot_of(&id).begin(&server).await;
    gate.reached().await;
    server.kill().await;
    drop(connection);
    server.boot().await.unwrap();
    // The next server cleans up what is not there yet.
    server.host().wait_for_effects(Rpc::DeleteSnapshot, 1).await;
    gate.release();
    server.host().wait_for_effects(Rpc::CreateSnapshot, 2).await;
    assert_left(&server, &[kept]).await;
    let listed = Request::new("GET", "/v1/snapshots").send(&server).await;
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn snapshot_that_outlasts_its_row_is_refused() {
    let server = start_settling_soon().await;
    let id = create(&server).await;
    let gate = server.host().hold_answer(Rpc::CreateSnapshot);
    let connection = snapshot_of(&id).begin(&server).await;
    gate.reached().await;
    server.host().wait_for_effects(Rpc::DeleteSnapshot, 1).await;
    gate.release();
    let answer = read(connection).await;
    assert_eq!(
        (answer.status, answer.code()),
        (409, "conflict"),
        "{answer:?}"
    );
    assert_left(&server, &[]).await;
}
