//! A client that hangs up, at each await of each operation: row and host agree afterwards, and
//! no status is in between.

use std::time::{Duration, Instant};

use serde_json::json;
use wrenn_testing::proto::State;
use wrenn_testing::{Rpc, TestServer};

use crate::api::*;

/// How long row and host may differ.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);
/// Hang-ups at growing times after the request, beside those at the calls of the host.
const TIMED_HANG_UPS: u32 = 12;
const STEP: Duration = Duration::from_micros(700);

/// An operation, and the call of the host that it makes.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Create,
    Pause,
    Resume,
    Fork,
    Snapshot,
    Delete,
}

/// Where the client hangs up.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// So long after it has sent the request.
    After(Duration),
    /// When the host was called, before the effect.
    BeforeEffect,
    /// When the host did it, before it answers.
    BeforeAnswer,
}

impl Operation {
    fn rpc(self) -> Rpc {
        match self {
            Self::Create => Rpc::CreateSandbox,
            Self::Pause => Rpc::PauseSandbox,
            Self::Resume => Rpc::ResumeSandbox,
            Self::Fork => Rpc::ForkSandbox,
            Self::Snapshot => Rpc::CreateSnapshot,
            Self::Delete => Rpc::DestroySandbox,
        }
    }

    /// A sandbox in the state that it wants, and the request.
    async fn prepare(self, server: &TestServer) -> (Option<String>, Request) {
        if matches!(self, Self::Create) {
            return (None, Request::create());
        }
        let id = create(server).await;
        let path = |verb: &str| format!("/v1/sandboxes/{id}/{verb}");
        let request = match self {
            Self::Create | Self::Delete => Request::delete(&id),
            Self::Pause => Request::post(path("pause"), json!({})),
            Self::Resume => {
                let paused = Request::post(path("pause"), json!({})).send(server).await;
                assert_eq!(paused.status, 200, "{paused:?}");
                Request::post(path("resume"), json!({}))
            }
            Self::Fork => Request::post(path("fork"), json!({"count": 2})),
            Self::Snapshot => Request::post("/v1/snapshots", json!({"sandbox_id": id})),
        };
        (Some(id), request)
    }

    /// What the sandbox is when the operation was done.
    fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Delete => "stopped",
            Self::Create | Self::Resume | Self::Fork | Self::Snapshot => "running",
        }
    }
}

async fn hang_up(server: &TestServer, operation: Operation, point: Point) {
    let host = server.host();
    let (id, request) = operation.prepare(server).await;
    let gate = match point {
        Point::After(_) => None,
        Point::BeforeEffect => Some(host.hold(operation.rpc())),
        Point::BeforeAnswer => Some(host.hold_answer(operation.rpc())),
    };
    let connection = request.begin(server).await;
    match (&gate, point) {
        (Some(gate), _) => gate.reached().await,
        (None, Point::After(delay)) => tokio::time::sleep(delay).await,
        (None, _) => {}
    }
    drop(connection);
    // The server learns of it before the host goes on.
    tokio::time::sleep(Duration::from_millis(2)).await;
    drop(gate);
    agree(server, operation, point).await;
    // A call that the host saw was done, whoever waited for it.
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

/// Waits until rows and host agree, and no operation is under way.
async fn agree(server: &TestServer, operation: Operation, point: Point) {
    let since = Instant::now();
    let mut calm = 0;
    loop {
        let difference = difference(server).await;
        match difference {
            // An operation may just begin: the request was sent a moment ago.
            None if calm == 3 => return,
            None => calm += 1,
            Some(difference) => {
                calm = 0;
                assert!(
                    since.elapsed() < SETTLE_DEADLINE,
                    "{operation:?} {point:?}: {difference}"
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How rows and host differ.
async fn difference(server: &TestServer) -> Option<String> {
    let host = server.host();
    let rows = rows(server).await;
    for (id, status) in &rows {
        let seen = match host.state(id) {
            None => "stopped",
            Some(State::STATE_RUNNING) => "running",
            Some(State::STATE_PAUSED) => "paused",
            Some(_) => "in between",
        };
        if status != seen {
            return Some(format!("{id} is {status}, and on its host {seen}"));
        }
    }
    let unknown = host
        .sandboxes()
        .into_iter()
        .find(|id| !rows.iter().any(|(known, _)| known == id));
    if let Some(id) = unknown {
        return Some(format!("no row describes {id}"));
    }
    let answer = Request::new("GET", "/v1/snapshots").send(server).await;
    let items = answer.body["items"].as_array().unwrap().iter();
    let mut snapshots: Vec<&str> = items.map(|item| item["id"].as_str().unwrap()).collect();
    snapshots.sort_unstable();
    let on_host = host.snapshots();
    (snapshots != on_host).then(|| format!("snapshots {snapshots:?}, on the host {on_host:?}"))
}

/// Destroys everything, so that the next case starts on an empty host.
async fn clean_up(server: &TestServer) {
    for (id, status) in rows(server).await {
        if status != "stopped" {
            let answer = Request::delete(&id).send(server).await;
            assert!(matches!(answer.status, 200..=299), "{answer:?}");
        }
    }
    for name in server.host().snapshots() {
        let request = Request::new("DELETE", format!("/v1/snapshots/{name}"));
        let answer = request.send(server).await;
        assert!(matches!(answer.status, 200..=299), "{answer:?}");
    }
    assert_eq!(server.host().sandboxes(), [""; 0]);
}

async fn hang_up_everywhere(operation: Operation) {
    let server = TestServer::start().await.unwrap();
    for point in [Point::BeforeEffect, Point::BeforeAnswer] {
        hang_up(&server, operation, point).await;
    }
    for step in 0..TIMED_HANG_UPS {
        hang_up(&server, operation, Point::After(STEP * step)).await;
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
