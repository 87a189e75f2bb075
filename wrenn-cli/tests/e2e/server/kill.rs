//! `wrenn up` is killed in the middle: the next one finds rows and sandboxes in agreement.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use wrenn_sdk::ListOptions;
use wrenn_sdk::api::status::Status;

use super::fixture::{TestUp, small, with_server};

/// How long the next server may take until rows and sandboxes agree. Ten seconds where nothing is
/// emulated.
const AGREEMENT: Duration = crate::stage::PATIENCE;

#[test]
fn killed_server_loses_no_sandbox() {
    with_server(|up| async move {
        let kept = up.create().await;
        kept.shell("echo kept > /tmp/state").await.unwrap();

        // In the middle of a creation.
        let client = up.client();
        let creating = tokio::spawn(async move { client.sandboxes().create(small()).await });
        wait_for_rows(&up, 2).await;
        up.end(Signal::SIGKILL).await;
        drop(creating.await);
        up.start().await;
        agree(&up).await;

        // In the middle of a command and of a copy.
        let client = up.client();
        let id = kept.id().to_string();
        let sandbox = client.sandboxes().get(&id).await.unwrap();
        let running = sandbox.spawn("sleep", ["1000"]).tag("nap").await.unwrap();
        let copying = {
            let files = sandbox.files();
            tokio::spawn(async move { files.write("/tmp/copy", vec![1; 8 << 20]).await })
        };
        up.end(Signal::SIGKILL).await;
        drop(copying.await);
        up.start().await;
        agree(&up).await;
        let sandbox = up.client().sandboxes().get(&id).await.unwrap();
        let processes = sandbox.processes().await.unwrap();
        assert_eq!(processes[0].tag, "nap", "the command goes on");
        running.kill().await.ok();

        // In the middle of a pause.
        let mut pausing = sandbox.clone();
        let pause = tokio::spawn(async move { pausing.pause().await });
        let client = up.client();
        crate::stage::until("the pause has begun", || async {
            let row = client.sandboxes().get(&id).await.unwrap();
            row.info().status != Status::Running
        })
        .await;
        up.end(Signal::SIGKILL).await;
        drop(pause.await);
        up.start().await;
        agree(&up).await;
        let mut sandbox = up.client().sandboxes().get(&id).await.unwrap();
        sandbox.resume().await.unwrap();
        let text = sandbox.files().read_text("/tmp/state").await.unwrap();
        assert_eq!(text, "kept\n");
    });
}

async fn wait_for_rows(up: &TestUp, count: usize) {
    let client = up.client();
    crate::stage::until("the row is written", || async {
        let listed = client.sandboxes().list(ListOptions::new());
        listed.all().await.unwrap().len() == count
    })
    .await;
}

/// Waits until no row is in between, and every row that runs answers.
async fn agree(up: &TestUp) {
    let begun = Instant::now();
    let client = up.client();
    loop {
        let listed = client.sandboxes().list(ListOptions::new());
        let statuses: BTreeMap<String, Status> = listed
            .all()
            .await
            .unwrap()
            .iter()
            .map(|sandbox| (sandbox.id().to_string(), sandbox.info().status))
            .collect();
        let settled = statuses.values().all(|status| {
            // One that boots takes its time under emulation, and is what its host says.
            !matches!(status, Status::Pausing | Status::Resuming | Status::Missing)
        });
        if settled {
            return;
        }
        assert!(
            begun.elapsed() < AGREEMENT,
            "still in between: {statuses:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
