//! A database that is restored or lost ends no sandbox.

use nix::sys::signal::Signal;
use wrenn_sdk::api::status::Status;

use super::fixture::with_server;
use crate::stage::{record, until};

#[test]
fn restored_and_emptied_database_ends_no_sandbox() {
    with_server(|up| async move {
        let old = up.create().await;
        up.end(Signal::SIGTERM).await;
        let backup = std::fs::read(up.database()).unwrap();
        up.start().await;
        let new = up.create().await;

        // Restored from before the second one.
        up.end(Signal::SIGTERM).await;
        std::fs::write(up.database(), &backup).unwrap();
        up.start().await;
        let client = up.client();
        until("the second one is an orphan, and paused", || async {
            state(new.id().as_str()) == "paused"
        })
        .await;
        let row = client.sandboxes().get(old.id().as_str()).await.unwrap();
        assert_eq!(
            row.info().status,
            Status::Running,
            "the first one is not touched"
        );

        // Its row comes back with a newer backup: it can be resumed.
        up.end(Signal::SIGTERM).await;
        std::fs::remove_file(up.database()).unwrap();
        up.start().await;
        until("both are orphans, and paused", || async {
            state(old.id().as_str()) == "paused" && state(new.id().as_str()) == "paused"
        })
        .await;
        for id in [old.id(), new.id()] {
            assert!(record(id.as_str()).is_object(), "its data is there");
        }
        until("orphans are shown", || async {
            orphans(&up.client()).await == 2
        })
        .await;
    });
}

/// The state of a sandbox, as its host keeps it.
fn state(id: &str) -> String {
    record(id)["state"].as_str().unwrap().to_lowercase()
}

/// How many orphans the server shows.
async fn orphans(client: &wrenn_sdk::Client) -> usize {
    client.orphans().await.unwrap().len()
}
