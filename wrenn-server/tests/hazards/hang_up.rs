//! A client that hangs up, at each await of each operation: row and host agree afterwards, and
//! no status is in between.

use std::time::Duration;

use wrenn_testing::TestServer;

use crate::api::*;
use crate::operation::*;

/// How long row and host may differ.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

async fn hang_up(server: &TestServer, operation: Operation, point: Point) {
    let (id, request) = operation.prepare(server).await;
    let gate = point.hold(server, operation);
    let connection = request.begin(server).await;
    point.reached(gate.as_ref()).await;
    drop(connection);
    // The server learns of it before the host goes on.
    tokio::time::sleep(Duration::from_millis(2)).await;
    drop(gate);
    agree(server, operation, point, SETTLE_DEADLINE).await;
    // A call that the host saw was done, also without its client.
    if let (Some(id), true) = (&id, !matches!(point, Point::After(_))) {
        let status = status(server, id).await;
        assert_eq!(
            status.as_deref(),
            Some(operation.done()),
            "{operation:?} {point:?}"
        );
    }
    clean_up(server).await;
}

async fn hang_up_everywhere(operation: Operation) {
    let server = TestServer::start().await.unwrap();
    for point in Point::all() {
        hang_up(&server, operation, point).await;
    }
}

#[tokio::test]
async fn create_survives_its_client() {
    hang_up_everywhere(Operation::Create).await;
}

#[tokio::test]
async fn pause_survives_its_client() {
    hang_up_everywhere(Operation::Pause).await;
}

#[tokio::test]
async fn resume_survives_its_client() {
    hang_up_everywhere(Operation::Resume).await;
}

#[tokio::test]
async fn fork_survives_its_client() {
    hang_up_everywhere(Operation::Fork).await;
}

#[tokio::test]
async fn snapshot_survives_its_client() {
    hang_up_everywhere(Operation::Snapshot).await;
}

#[tokio::test]
async fn delete_survives_its_client() {
    hang_up_everywhere(Operation::Delete).await;
}
