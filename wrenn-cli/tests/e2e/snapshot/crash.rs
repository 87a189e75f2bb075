//! An agent that ends at each step of a pause, a resume and a snapshot.

use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_core::crash::POINTS;
use wrenn_proto::hostagent::*;

use super::cycle::{build_of, destroy, get, no_build_is_left, pause, resume, state};
use crate::agent::stage::{TestAgent, ended, enter, enter_tolerating};
use crate::stage::{Amount, record, until};

/// Longer than a pause and a resume take where everything is emulated.
const LONGEST_MS: u64 = 6_000;

/// Something of which memory and disk must be of the same moment.
pub(super) async fn change(agent: &TestAgent, id: &str, round: usize) {
    let line = format!("echo {round} >/run/round; echo {round} >/var/tmp/round; sync");
    agent.shell(id, &line).await;
}

pub(super) async fn assert_unchanged(agent: &TestAgent, id: &str, round: usize) {
    let line = "echo 3 >/proc/sys/vm/drop_caches; cat /run/round /var/tmp/round";
    let found = agent.shell(id, line).await;
    assert_eq!(found, format!("{round}\n{round}"));
}

async fn snapshot(agent: &TestAgent, id: &str) {
    let request = CreateSnapshotRequest {
        id: id.to_owned(),
        name: "named".to_owned(),
    };
    // It may be there from a round that ended a moment too late.
    drop(agent.client().create_snapshot(request).await);
}

pub(super) async fn forget_snapshot(agent: &TestAgent) {
    let request = DeleteSnapshotRequest {
        name: "named".to_owned(),
    };
    drop(agent.client().delete_snapshot(request).await);
}

/// Asks for that of which a crash point is a step, of an agent that ends itself there. Before a
/// step of a resume the sandbox is paused.
pub(super) async fn end_at(point: &'static str, agent: &Arc<TestAgent>, id: &str) {
    if point.starts_with("resume") {
        pause(agent, id).await.unwrap();
    }
    agent.end(Signal::SIGTERM).await;
    agent.start_to_crash(Some(point)).await;
    let pid = agent.pid();
    let asked = tokio::spawn({
        let (agent, id) = (Arc::clone(agent), id.to_owned());
        async move {
            // No answer comes.
            if point.starts_with("pause") {
                drop(pause(&agent, &id).await);
            } else if point.starts_with("resume") {
                drop(resume(&agent, &id).await);
            } else {
                snapshot(&agent, &id).await;
            }
        }
    });
    until(&format!("it ends at {point}"), || async { ended(pid) }).await;
    asked.await.unwrap();
    agent.end(Signal::SIGKILL).await;
}

/// Whatever happened, it runs or is paused, and then it runs again as it was.
async fn bring_back(agent: &TestAgent, id: &str, round: usize) {
    match state(agent, id).await {
        State::STATE_RUNNING => {}
        State::STATE_PAUSED => resume(agent, id).await.unwrap(),
        other => panic!("it is {other:?}: {}", get(agent, id).await.reason),
    }
    assert_unchanged(agent, id, round).await;
}

#[test]
fn an_agent_that_ends_at_any_step_loses_nothing() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        // Memory in two builds, so that a pager is part of it.
        for _ in 0..2 {
            pause(&agent, &id).await.unwrap();
            resume(&agent, &id).await.unwrap();
        }
        for (round, point) in POINTS.into_iter().enumerate() {
            change(&agent, &id, round).await;
            end_at(point, &agent, &id).await;
            agent.start().await;
            bring_back(&agent, &id, round).await;
            forget_snapshot(&agent).await;
        }
        destroy(&agent, &id).await;
        no_build_is_left().await;
    });
}

#[test]
fn whatever_is_killed_at_any_moment_of_a_pause_or_resume_the_data_is_there() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        pause(&agent, &id).await.unwrap();
        resume(&agent, &id).await.unwrap();
        for round in 0..Amount::Kills.or(4) {
            change(&agent, &id, round).await;
            let asked = tokio::spawn({
                let (agent, id) = (Arc::clone(&agent), id.clone());
                async move {
                    drop(pause(&agent, &id).await);
                    // The agent may be dead by now.
                    if let Some(client) = agent.client_if_running() {
                        let timeout_sec = None;
                        let request = ResumeSandboxRequest { id, timeout_sec };
                        drop(client.resume_sandbox(request).await);
                    }
                }
            });
            let moment = rand::random_range(0..LONGEST_MS);
            tokio::time::sleep(std::time::Duration::from_millis(moment)).await;
            agent.end(Signal::SIGKILL).await;
            asked.await.unwrap();
            agent.start().await;
            bring_back(&agent, &id, round).await;
        }
        destroy(&agent, &id).await;
        no_build_is_left().await;
    });
}

#[test]
fn a_vmm_that_dies_while_it_is_paused_leaves_its_last_build() {
    // That a pause failed is for a person to look at.
    enter_tolerating("could not be paused", |agent| async move {
        let id = agent.create().await.id;
        pause(&agent, &id).await.unwrap();
        resume(&agent, &id).await.unwrap();
        let vmm = record(&id)["vmm"]["pid"].as_i64().unwrap();
        let asked = tokio::spawn({
            let (agent, id) = (Arc::clone(&agent), id.clone());
            async move { pause(&agent, &id).await }
        });
        kill(Pid::from_raw(i32::try_from(vmm).unwrap()), Signal::SIGKILL).unwrap();
        let paused = asked.await.unwrap();
        let found = state(&agent, &id).await;
        if paused.is_ok() {
            assert_eq!(found, State::STATE_PAUSED);
        } else {
            until("it is broken", || async {
                state(&agent, &id).await == State::STATE_ERROR
            })
            .await;
            assert!(build_of(&id).is_dir());
        }
        destroy(&agent, &id).await;
        no_build_is_left().await;
    });
}
