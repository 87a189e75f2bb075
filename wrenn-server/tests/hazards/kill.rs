//! A server that is killed at each await of each operation: the next one finds rows and host in
//! agreement, and what is left can be destroyed.

use std::time::Duration;

use wrenn_testing::{Settings, TestServer};

use crate::api::start_settling_soon;
use crate::operation::*;

/// How long the next server may take to find out.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);

async fn kill(server: &mut TestServer, operation: Operation, point: Point) {
    let (_, request) = operation.prepare(server).await;
    let gate = point.hold(server, operation);
    let connection = request.begin(server).await;
    point.reached(gate.as_ref()).await;
    server.kill().await;
    drop(connection);
    // The host does what it was asked for, before or after the next server asks.
    drop(gate);
    server.boot().await.unwrap();
    agree(server, operation, point, SETTLE_DEADLINE).await;
    clean_up(server).await;
}

async fn kill_everywhere(operation: Operation) {
    let mut server = start_settling_soon().await;
    for point in Point::all() {
        kill(&mut server, operation, point).await;
    }
}

#[tokio::test]
async fn killed_create_is_settled() {
    kill_everywhere(Operation::Create).await;
}

#[tokio::test]
async fn killed_pause_is_settled() {
    kill_everywhere(Operation::Pause).await;
}

#[tokio::test]
async fn killed_resume_is_settled() {
    kill_everywhere(Operation::Resume).await;
}

#[tokio::test]
async fn killed_fork_is_settled() {
    kill_everywhere(Operation::Fork).await;
}

#[tokio::test]
async fn killed_snapshot_is_settled() {
    kill_everywhere(Operation::Snapshot).await;
}

#[tokio::test]
async fn killed_delete_is_settled() {
    kill_everywhere(Operation::Delete).await;
}

/// With the rounds that a server has unless told otherwise: what the killed one held in the
/// database does not hold up the next.
#[tokio::test]
async fn killed_server_leaves_no_lease_in_the_way() {
    let mut server = TestServer::builder()
        .settings(Settings::default())
        .start()
        .await
        .unwrap();
    let point = Point::all().next().unwrap();
    kill(&mut server, Operation::Pause, point).await;
}
