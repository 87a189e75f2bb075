//! Guests whose root has replaced the daemon: `/health` is answered, and all other calls hang.

use std::sync::Arc;

use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::*;

use super::cycle::{destroy, no_build_is_left, pause, reserved, resume, state};
use super::templates::{create, snapshot};
use crate::agent::stage::{BOOT_DEADLINE, TestAgent, enter, enter_with, refused};
use crate::stage::{self, until};

/// Kills the daemon until its port is free at the right moment, and serves the port.
const REPLACE_DAEMON: &str = r#"
cat >/var/tmp/serve <<'END'
#!/bin/sh
read -r line
case "$line" in "GET /health"*) printf 'HTTP/1.1 204 No Content\r\n\r\n';; esac
exec sleep 100000
END
chmod +x /var/tmp/serve
setsid sh -c 'while :; do
    for pid in $(pidof wrenn-envd); do [ $pid = 1 ] || kill -9 $pid; done
    nc -ll -p 49983 -e /var/tmp/serve
done' </dev/null >/dev/null 2>&1 &"#;

/// A sandbox that runs, and whose guest answers nothing but `/health`.
async fn hostile(agent: &TestAgent) -> String {
    let id = agent.create().await.id;
    // The daemon may be gone before it has answered.
    drop(agent.exec(&id, REPLACE_DAEMON).await);
    until("its calls hang", || async {
        let request = GetMetricsRequest { id: id.clone() };
        let metrics = agent.client().get_metrics(request).await;
        let message = metrics.err().and_then(|error| error.message);
        message.is_some_and(|message| message.contains("does not say"))
    })
    .await;
    id
}

fn in_background<F, T>(
    agent: &Arc<TestAgent>,
    call: impl FnOnce(Arc<TestAgent>) -> F,
) -> JoinHandle<Result<T, ConnectError>>
where
    F: Future<Output = Result<T, ConnectError>> + Send + 'static,
    T: Send + 'static,
{
    tokio::spawn(call(Arc::clone(agent)))
}

/// The directories that sandboxes have for as long as they have a VM.
fn directories() -> usize {
    let entries = std::fs::read_dir(stage::root().path().join("sandboxes")).unwrap();
    let entries = entries.map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).count()
}

async fn listed(agent: &TestAgent) -> Vec<String> {
    let request = ListSandboxesRequest::default();
    let listed = agent.client().list_sandboxes(request).await.unwrap();
    let sandboxes = listed.into_owned().sandboxes;
    sandboxes.into_iter().map(|sandbox| sandbox.id).collect()
}

#[test]
fn hanging_guest_blocks_no_resume_or_destroy() {
    enter_with(&[BOOT_DEADLINE, "40s"], |agent| async move {
        let id = hostile(&agent).await;
        pause(&agent, &id).await.unwrap();
        let resumed = resume(&agent, &id).await;
        refused(resumed, ErrorCode::Unavailable, "paused as before");
        assert_eq!(state(&agent, &id).await, State::STATE_PAUSED);
        assert_eq!(reserved(&agent).await, 0);

        let resuming = in_background(&agent, {
            let id = id.clone();
            |agent| async move { resume(&agent, &id).await }
        });
        until("it is resumed", || async {
            state(&agent, &id).await == State::STATE_RESUMING
        })
        .await;
        destroy(&agent, &id).await;
        assert_eq!((directories(), reserved(&agent).await), (0, 0));
        refused(resuming.await.unwrap(), ErrorCode::Aborted, "destroyed");
    });
}

#[test]
fn hanging_creations_are_counted_until_torn_down() {
    enter_with(&[BOOT_DEADLINE, "40s"], |agent| async move {
        let id = hostile(&agent).await;
        pause(&agent, &id).await.unwrap();
        snapshot(&agent, &id, "hostile").await.unwrap();
        destroy(&agent, &id).await;
        let begin = || {
            in_background(&agent, |agent| async move {
                create(&agent, "hostile").await.map(drop)
            })
        };

        let creations = [begin(), begin()];
        until("both are created", || async {
            directories() == 2 && reserved(&agent).await == 2
        })
        .await;
        for id in listed(&agent).await {
            destroy(&agent, &id).await;
        }
        assert_eq!((directories(), reserved(&agent).await), (0, 0));
        for creation in creations {
            refused(creation.await.unwrap(), ErrorCode::Aborted, "destroyed");
        }

        let missed = begin().await.unwrap();
        refused(missed, ErrorCode::Unavailable, "the sandbox was removed");
        assert_eq!((directories(), reserved(&agent).await), (0, 0));

        // An agent that stops waits for its creations, and for no longer than their deadline.
        let cut_off = begin();
        until("it is created", || async { directories() == 1 }).await;
        agent.end(Signal::SIGTERM).await;
        cut_off.await.unwrap().unwrap_err();
        assert_eq!(directories(), 0);
        agent.start().await;
        assert!(listed(&agent).await.is_empty());
        let request = DeleteSnapshotRequest {
            name: "hostile".to_owned(),
        };
        agent.client().delete_snapshot(request).await.unwrap();
        no_build_is_left().await;
    });
}

#[test]
fn hanging_guest_is_adopted_beside_others() {
    enter(|agent| async move {
        let (hanging, other) = (hostile(&agent).await, agent.create().await.id);
        agent.end(Signal::SIGKILL).await;
        agent.start().await;
        assert_eq!(state(&agent, &hanging).await, State::STATE_RUNNING);
        assert_eq!(agent.shell(&other, "echo here").await, "here");
        destroy(&agent, &hanging).await;
        destroy(&agent, &other).await;
        assert_eq!((directories(), reserved(&agent).await), (0, 0));
    });
}
