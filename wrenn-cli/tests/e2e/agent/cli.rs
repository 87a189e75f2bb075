//! `wrenn agent`, as a person or a script uses it.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use super::stage::{TestAgent, enter};
use crate::stage;

fn wrenn(agent: &TestAgent, arguments: &[&str]) -> Command {
    let mut command = Command::new(stage::wrenn());
    command
        .args(["agent", "--agent", &agent.url()])
        .arg("--token-file")
        .arg(agent.token_file())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs `wrenn agent` with these arguments. Elsewhere than here, since the test's runtime
/// must not be held up.
async fn run(agent: &Arc<TestAgent>, arguments: &[&str]) -> Output {
    let mut command = wrenn(agent, arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

async fn fine(agent: &Arc<TestAgent>, arguments: &[&str]) -> String {
    let output = run(agent, arguments).await;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_sandbox_from_the_command_line() {
    enter(|agent| async move {
        let created = fine(
            &agent,
            &[
                "create",
                "--template",
                "minimal",
                "--memory",
                "128M",
                "-m",
                "a=b",
            ],
        );
        let id = created.await.trim().to_owned();
        assert!(fine(&agent, &["list"]).await.contains(&id));
        let json = fine(&agent, &["get", "--json", &id]).await;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["sandbox"]["metadata"]["a"], "b");
        assert!(fine(&agent, &["info"]).await.contains("minimal"));

        let line = "cat; echo err >&2; exit 7";
        let mut command = wrenn(&agent, &["exec", "-i", &id, "--", "sh", "-c", line]);
        let output = tokio::task::spawn_blocking(move || {
            let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(b"input").unwrap();
            child.wait_with_output().unwrap()
        });
        let output = output.await.unwrap();
        assert_eq!(output.status.code(), Some(7));
        assert_eq!(
            (&output.stdout[..], &output.stderr[..]),
            (&b"input"[..], &b"err\n"[..])
        );
        let late = run(&agent, &["exec", "--timeout", "1s", &id, "sleep", "1000"]).await;
        assert_eq!(late.status.code(), Some(124));

        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().join("here");
        std::fs::write(&here, vec![9_u8; 3 << 20]).unwrap();
        let (inside, again) = (format!("{id}:copy"), directory.path().join("again"));
        fine(&agent, &["cp", here.to_str().unwrap(), &inside]).await;
        fine(&agent, &["cp", &inside, again.to_str().unwrap()]).await;
        assert!(std::fs::read(&again).unwrap() == std::fs::read(&here).unwrap());

        assert!(
            fine(&agent, &["metrics", &id])
                .await
                .contains("disk, guest")
        );
        fine(&agent, &["ping", "--timeout", "1m", &id]).await;
        fine(&agent, &["console", &id]).await;
        fine(&agent, &["ps", &id]).await;
        let missing = run(&agent, &["kill", &id, "999999"]).await;
        assert_eq!(missing.status.code(), Some(1));
        fine(&agent, &["destroy", &id]).await;

        let gone = run(&agent, &["exec", &id, "true"]).await;
        assert_eq!(gone.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&gone.stderr).into_owned();
        assert!(stderr.contains("there is no sandbox"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    });
}
