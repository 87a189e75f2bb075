//! No status is a dead end: whatever happened to a sandbox, it can be destroyed, and a host that
//! is well again needs nobody to say so.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use wrenn_testing::proto::{ErrorCode, Reason, State};
use wrenn_testing::{Rpc, Settings, TestServer};

use crate::api::*;

/// What happens to a sandbox.
#[derive(Clone, Copy, Debug)]
enum Event {
    Pause,
    Resume,
    AutoPause,
    /// The host refuses the next pause and the next resume.
    Refuse,
    /// The host does the next pause and the next resume, and says nothing.
    LoseAnswers,
    /// Its VM ends.
    Break,
    /// The host says this, whatever is true.
    Pretend(State),
    TellTheTruth,
    /// It is gone.
    Vanish,
    Disconnect,
    Reconnect,
    KillServer,
    /// Some lists are taken.
    Wait,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Pause),
        3 => Just(Event::Resume),
        2 => Just(Event::AutoPause),
        1 => Just(Event::Refuse),
        1 => Just(Event::LoseAnswers),
        1 => Just(Event::Break),
        1 => prop_oneof![
            Just(State::STATE_PENDING),
            Just(State::STATE_PAUSING),
            Just(State::STATE_RESUMING),
            Just(State::STATE_ERROR),
        ].prop_map(Event::Pretend),
        1 => Just(Event::TellTheTruth),
        1 => Just(Event::Vanish),
        2 => Just(Event::Disconnect),
        2 => Just(Event::Reconnect),
        1 => Just(Event::KillServer),
        3 => Just(Event::Wait),
    ]
}

/// A host that is silent for a moment is unreachable.
async fn start() -> TestServer {
    let mut settings = Settings::default();
    settings.reconcile_interval = Duration::from_millis(10);
    settings.host_stale_after = Duration::from_millis(100);
    let server = TestServer::builder().settings(settings);
    server.start().await.unwrap()
}

async fn apply(server: &mut TestServer, id: &str, event: Event) {
    let call = |verb: &str| Request::post(format!("/v1/sandboxes/{id}/{verb}"), json!({}));
    match event {
        Event::Pause => allow_refusal(&call("pause").send(server).await),
        Event::Resume => allow_refusal(&call("resume").send(server).await),
        Event::AutoPause => {
            server.host().auto_pause(id).await;
        }
        Event::Refuse => {
            for rpc in [Rpc::PauseSandbox, Rpc::ResumeSandbox] {
                let fault = server.host().fault(rpc).of(id);
                fault.fail(ErrorCode::Internal, Reason::REASON_INTERNAL);
            }
        }
        Event::LoseAnswers => {
            for rpc in [Rpc::PauseSandbox, Rpc::ResumeSandbox] {
                server.host().fault(rpc).of(id).lose_answer();
            }
        }
        Event::Break => server.host().break_sandbox(id, "its VM ended").await,
        Event::Pretend(state) => server.host().pretend(id, state, "the test says so"),
        Event::TellTheTruth => server.host().stop_pretending(id),
        Event::Vanish => server.host().vanish(id).await,
        Event::Disconnect => server.host().disconnect(),
        Event::Reconnect => server.host().reconnect(),
        Event::KillServer => {
            server.kill().await;
            server.boot().await.unwrap();
        }
        Event::Wait => tokio::time::sleep(Duration::from_millis(150)).await,
    }
}

/// A refusal may be right; a failure of the server itself never is.
fn allow_refusal(answer: &Answer) {
    assert!(answer.status != 500, "{answer:?}");
}

#[test]
fn destroy_ends_a_sandbox_after_any_events() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(start());
    let server = std::cell::RefCell::new(server);
    let config = Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let events = prop::collection::vec(event(), 0..8);
    let outcome = runner.run(&events, |events| {
        let mut server = server.borrow_mut();
        runtime.block_on(async {
            let server = &mut *server;
            // The case before may have failed anywhere.
            server.host().reconnect();
            server.host().clear_faults();
            let id = create_patiently(server).await;
            for event in &events {
                apply(server, &id, *event).await;
            }
            let answer = Request::delete(&id).send(server).await;
            assert!(matches!(answer.status, 200..=299), "{answer:?}");
            // Nothing else may bring it back.
            let later = Request::post(format!("/v1/sandboxes/{id}/resume"), json!({}));
            let later = later.send(server).await;
            assert_eq!(later.status, 409, "{later:?}");
            server.host().reconnect();
            server.host().clear_faults();
            settles(server, &id, "stopped").await;
            until_gone(server, &id).await;
        });
        Ok(())
    });
    outcome.unwrap();
}

/// The host may have come back a moment ago.
async fn create_patiently(server: &TestServer) -> String {
    let since = Instant::now();
    loop {
        let answer = Request::create().send(server).await;
        if answer.status == 201 {
            return answer.id();
        }
        assert!(
            answer.status == 503 && since.elapsed() < PATIENCE,
            "{answer:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_gone(server: &TestServer, id: &str) {
    let gone = async {
        while server.host().state(id).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn unreachable_host_comes_back_with_its_sandboxes() {
    let server = start().await;
    let (running, paused) = (create(&server).await, create(&server).await);
    let pause = Request::post(format!("/v1/sandboxes/{paused}/pause"), json!({}));
    assert_eq!(pause.send(&server).await.status, 200);
    server.host().disconnect();
    settles(&server, &running, "missing").await;
    server.host().reconnect();
    settles(&server, &running, "running").await;
    settles(&server, &paused, "paused").await;
}

/// A host whose first list fails already.
#[tokio::test]
async fn host_that_was_never_listed_becomes_unreachable() {
    let server = start().await;
    let silent = server.host().fault(Rpc::ListSandboxes).always();
    silent.hang_up();
    let id = create_patiently(&server).await;
    settles(&server, &id, "missing").await;
    server.host().clear_faults();
    settles(&server, &id, "running").await;
}

#[tokio::test]
async fn sandbox_in_error_runs_again_with_its_host() {
    let server = start().await;
    let id = create(&server).await;
    let host = server.host();
    host.pretend(&id, State::STATE_ERROR, "the host's disk is gone");
    settles(&server, &id, "error").await;
    host.stop_pretending(&id);
    settles(&server, &id, "running").await;
}

#[tokio::test]
async fn destroy_while_the_host_is_away_happens_later() {
    let server = start().await;
    let id = create(&server).await;
    server.host().disconnect();
    settles(&server, &id, "missing").await;
    let answer = Request::delete(&id).send(&server).await;
    assert!(matches!(answer.status, 200..=299), "{answer:?}");
    assert!(server.host().state(&id).is_some());
    server.host().reconnect();
    settles(&server, &id, "stopped").await;
    until_gone(&server, &id).await;
}

#[tokio::test]
async fn destroy_wins_over_a_creation_under_way() {
    let server = start().await;
    for held_before_effect in [true, false] {
        let gate = if held_before_effect {
            server.host().hold(Rpc::CreateSandbox)
        } else {
            server.host().hold_answer(Rpc::CreateSandbox)
        };
        let connection = Request::create().begin(&server).await;
        gate.reached().await;
        let rows = rows(&server).await;
        let (id, _) = rows.iter().find(|(_, status)| status == "pending").unwrap();
        let answer = Request::delete(id).send(&server).await;
        assert!(matches!(answer.status, 200..=299), "{answer:?}");
        gate.release();
        let created = read(connection).await;
        assert!(created.status >= 400, "{created:?}");
        settles(&server, id, "stopped").await;
        until_gone(&server, id).await;
    }
}
