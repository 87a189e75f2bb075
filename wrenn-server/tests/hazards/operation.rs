//! Operations that change something, stopped at their awaits, and whether rows and host agree
//! afterwards.

use std::time::{Duration, Instant};

use serde_json::json;
use wrenn_testing::proto::State;
use wrenn_testing::{Gate, Rpc, TestServer};

use crate::api::*;

/// Points in time, beside those at the calls of the host.
const TIMED: u32 = 12;
const STEP: Duration = Duration::from_micros(700);

/// An operation, and the call of the host that it makes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    Create,
    Pause,
    Resume,
    Fork,
    Snapshot,
    Delete,
}

/// Where it is stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Point {
    /// So long after the request was sent.
    After(Duration),
    /// When the host was called, before the effect.
    BeforeEffect,
    /// When the host did it, before it answers.
    BeforeAnswer,
}

impl Operation {
    pub(crate) fn rpc(self) -> Rpc {
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
    pub(crate) async fn prepare(self, server: &TestServer) -> (Option<String>, Request) {
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
    pub(crate) fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Delete => "stopped",
            Self::Create | Self::Resume | Self::Fork | Self::Snapshot => "running",
        }
    }
}

impl Point {
    /// The points of every operation: at the call of the host, and at growing times.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let timed = (0..TIMED).map(|step| Self::After(STEP * step));
        [Self::BeforeEffect, Self::BeforeAnswer]
            .into_iter()
            .chain(timed)
    }

    /// Holds the call of the host, if it is to be stopped there.
    pub(crate) fn hold(self, server: &TestServer, operation: Operation) -> Option<Gate> {
        match self {
            Self::After(_) => None,
            Self::BeforeEffect => Some(server.host().hold(operation.rpc())),
            Self::BeforeAnswer => Some(server.host().hold_answer(operation.rpc())),
        }
    }

    /// Waits until the operation is there.
    pub(crate) async fn reached(self, gate: Option<&Gate>) {
        match (gate, self) {
            (Some(gate), _) => gate.reached().await,
            (None, Self::After(delay)) => tokio::time::sleep(delay).await,
            (None, _) => {}
        }
    }
}

/// Waits until rows and host agree, and no operation is under way.
pub(crate) async fn agree(
    server: &TestServer,
    operation: Operation,
    point: Point,
    deadline: Duration,
) {
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
                    since.elapsed() < deadline,
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
            // It was never made, which its row says.
            None if status == "error" => "error",
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
pub(crate) async fn clean_up(server: &TestServer) {
    for (id, status) in rows(server).await {
        if status != "stopped" {
            let answer = Request::delete(&id).send(server).await;
            assert!(matches!(answer.status, 200..=299), "{answer:?}");
        }
    }
    // One that the host made for a server that was killed meanwhile has no name yet, and is
    // deleted by the next one.
    let since = Instant::now();
    while let Some(name) = server.host().snapshots().pop() {
        let request = Request::new("DELETE", format!("/v1/snapshots/{name}"));
        let answer = request.send(server).await;
        let is_fine = matches!(answer.status, 200..=299 | 404);
        assert!(is_fine && since.elapsed() < PATIENCE, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.host().sandboxes(), [""; 0]);
}
