//! An agent that is killed at any moment, under clients that go on asking.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use wrenn_proto::hostagent::*;

use super::stage::{TestAgent, enter_with, sh, small};
use crate::stage::{Amount, until};

fn kills() -> usize {
    Amount::Kills.or(5)
}

const CLIENTS: usize = 10;
/// Sandboxes that may exist at a time: few, so that creating and destroying never stops.
const SANDBOXES: &str = "4";
/// A moment to be killed at is up to this long after the agent serves, or after it has
/// acknowledged a sandbox. Where all is emulated, the first falls into creations and the
/// second into commands and destructions.
const LONGEST_LIFE_MS: u64 = 4_000;
/// What every client waits before it asks again.
const BREATH: Duration = Duration::from_millis(200);

/// What clients know of the sandboxes that they have asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// Asked for; no answer came.
    Asked,
    /// The answer said that it is there.
    Acknowledged,
    /// Asked to destroy it; no answer came.
    Leaving,
}

#[derive(Default)]
struct Ledger {
    known: Mutex<BTreeMap<String, Knowledge>>,
    acknowledged: AtomicUsize,
    /// Acknowledged sandboxes that were found running after a kill.
    survivors: AtomicUsize,
    executed: AtomicUsize,
    stop: AtomicBool,
}

impl Ledger {
    fn set(&self, id: &str, knowledge: Knowledge) {
        self.known.lock().unwrap().insert(id.to_owned(), knowledge);
    }

    fn forget(&self, id: &str) {
        self.known.lock().unwrap().remove(id);
    }

    fn some(&self, wanted: Knowledge) -> Option<String> {
        let known = self.known.lock().unwrap();
        let ids: Vec<_> = known.iter().filter(|(_, is)| **is == wanted).collect();
        (!ids.is_empty()).then(|| ids[rand::random_range(0..ids.len())].0.clone())
    }
}

#[test]
fn an_agent_that_is_killed_again_and_again_loses_nothing_that_it_acknowledged() {
    enter_with(&["--max-sandboxes", SANDBOXES], |agent| async move {
        let ledger = Arc::new(Ledger::default());
        let clients = (0..CLIENTS).map(|_| tokio::spawn(work(agent.clone(), ledger.clone())));
        let clients: Vec<_> = clients.collect();
        for round in 0..kills() {
            if round % 2 == 1 {
                let before = ledger.acknowledged.load(Ordering::Relaxed);
                until("a sandbox is acknowledged", || async {
                    ledger.acknowledged.load(Ordering::Relaxed) > before
                })
                .await;
            }
            let life = rand::random_range(0..LONGEST_LIFE_MS);
            tokio::time::sleep(Duration::from_millis(life)).await;
            agent.end(Signal::SIGKILL).await;
            agent.start().await;
            assert_what_was_acknowledged(&agent, &ledger, round).await;
        }
        ledger.stop.store(true, Ordering::Relaxed);
        for client in join_all(clients).await {
            client.unwrap();
        }
        assert_what_was_acknowledged(&agent, &ledger, kills()).await;
        // Whatever nobody knows the end of is there and answers, or is gone.
        for sandbox in list(&agent).await {
            assert_eq!(agent.shell(&sandbox.id, "echo alive").await, "alive");
            let request = DestroySandboxRequest { id: sandbox.id };
            agent.client().destroy_sandbox(request).await.unwrap();
        }
        eprintln!(
            "{} kills, {} creations acknowledged, {} found again after a kill, {} commands",
            kills(),
            ledger.acknowledged.load(Ordering::Relaxed),
            ledger.survivors.load(Ordering::Relaxed),
            ledger.executed.load(Ordering::Relaxed)
        );
        // What was never acknowledged cannot be lost: without any, nothing was shown.
        let survivors = ledger.survivors.load(Ordering::Relaxed);
        assert!(survivors > 0, "no acknowledged sandbox met a kill");
        assert!(
            ledger.executed.load(Ordering::Relaxed) > 0,
            "no command ran"
        );
        // The stage asserts that nothing is left.
    });
}

/// Creates, runs a command in, or destroys one sandbox after another. Every answer may be
/// lost, since the agent may die under it.
async fn work(agent: Arc<TestAgent>, ledger: Arc<Ledger>) {
    while !ledger.stop.load(Ordering::Relaxed) {
        // Without a breath, clients that find nothing to do would take the guests' time.
        tokio::time::sleep(BREATH).await;
        let Some(client) = agent.client_if_running() else {
            continue;
        };
        // Sandboxes are destroyed rarely enough for most to meet a kill.
        match rand::random_range(0..32) {
            0..8 => {
                let request = small();
                let id = request.id.clone();
                ledger.set(&id, Knowledge::Asked);
                // Refused for want of room most often, or the agent dies.
                if client.create_sandbox(request).await.is_ok() {
                    ledger.set(&id, Knowledge::Acknowledged);
                    ledger.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            }
            8 => {
                let Some(id) = ledger.some(Knowledge::Acknowledged) else {
                    continue;
                };
                ledger.set(&id, Knowledge::Leaving);
                let request = DestroySandboxRequest { id: id.clone() };
                if client.destroy_sandbox(request).await.is_ok() {
                    ledger.forget(&id);
                }
            }
            _ => {
                let Some(id) = ledger.some(Knowledge::Acknowledged) else {
                    continue;
                };
                let request = ExecRequest {
                    id,
                    command: Some(sh("echo alive")).into(),
                    ..ExecRequest::default()
                };
                if let Ok(answer) = client.exec(request).await {
                    let answer = answer.into_owned();
                    assert_eq!(&answer.stdout[..], b"alive\n");
                    ledger.executed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Every sandbox whose creation was acknowledged, and that nobody has begun to destroy
/// since, is there and runs.
async fn assert_what_was_acknowledged(agent: &TestAgent, ledger: &Ledger, round: usize) {
    // Looked at before the agent is asked: what is acknowledged by then must be there, but
    // for what somebody destroys in between.
    let before = ledger.known.lock().unwrap().clone();
    let there = list(agent).await;
    for (id, knowledge) in before {
        let still = ledger.known.lock().unwrap().get(&id).copied();
        if knowledge != Knowledge::Acknowledged || still != Some(Knowledge::Acknowledged) {
            continue;
        }
        let found = there.iter().find(|sandbox| sandbox.id == id);
        let found = found.unwrap_or_else(|| panic!("round {round}: {id} is lost"));
        assert_eq!(
            found.state.as_known(),
            Some(State::STATE_RUNNING),
            "round {round}: {id}: {}",
            found.reason
        );
        if round < kills() {
            ledger.survivors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn list(agent: &TestAgent) -> Vec<Sandbox> {
    let client = agent.client();
    let answer = client.list_sandboxes(ListSandboxesRequest::default());
    answer.await.unwrap().into_owned().sandboxes
}
