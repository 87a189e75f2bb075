//! Sandboxes whose record is damaged, as a failing disk leaves it.

use std::fs;

use nix::sys::signal::Signal;
use wrenn_proto::hostagent::*;

use super::cycle::{build_of, destroy, get, no_build_is_left, pause, resume, state};
use crate::agent::stage::{enter_tolerating, small};
use crate::stage::{self, until};

#[test]
fn unreadable_record_holds_up_only_itself() {
    enter_tolerating("failed to read a record", |agent| async move {
        let (damaged, other) = (agent.create().await.id, agent.create().await.id);
        agent.shell(&damaged, "echo kept >/run/file").await;
        pause(&agent, &damaged).await.unwrap();
        pause(&agent, &other).await.unwrap();
        let (build, others) = (build_of(&damaged), build_of(&other));
        let sandboxes = stage::root().sandboxes();
        let record = sandboxes.join(&damaged).join("sandbox.json");
        let contents = fs::read(&record).unwrap();

        agent.end(Signal::SIGTERM).await;
        fs::write(&record, "").unwrap();
        agent.start().await;
        let found = get(&agent, &damaged).await;
        assert_eq!(found.state.as_known(), Some(State::STATE_ERROR));
        assert!(found.reason.contains("sandbox.json"), "{}", found.reason);
        assert_eq!(fs::read(&record).unwrap(), b"", "the record was replaced");
        // Builds are collected, and its own is not.
        resume(&agent, &other).await.unwrap();
        pause(&agent, &other).await.unwrap();
        resume(&agent, &other).await.unwrap();
        destroy(&agent, &other).await;
        until("the builds of the other are removed", || async {
            !others.exists()
        })
        .await;
        assert!(build.exists());

        // A record that was repaired is as good as ever.
        agent.end(Signal::SIGTERM).await;
        fs::write(&record, contents).unwrap();
        agent.start().await;
        assert_eq!(state(&agent, &damaged).await, State::STATE_PAUSED);
        resume(&agent, &damaged).await.unwrap();
        assert_eq!(agent.shell(&damaged, "cat /run/file").await, "kept");

        // Its VM runs when it is damaged again, and goes when it is destroyed.
        agent.end(Signal::SIGTERM).await;
        fs::write(&record, "{").unwrap();
        agent.start().await;
        assert_eq!(state(&agent, &damaged).await, State::STATE_ERROR);
        destroy(&agent, &damaged).await;
        no_build_is_left().await;
        let again = CreateSandboxRequest {
            id: damaged.clone(),
            ..small()
        };
        agent.client().create_sandbox(again).await.unwrap();
        // The environment of the test asserts that nothing is left on the host.
    });
}
