//! `wrenn agent` against the fake host, which speaks the protocol of an agent.

use serde_json::Value;
use tempfile::TempDir;
use wrenn_testing::FakeHost;

use crate::wrenn::{Ran, program, run};

/// A host without a server, which would pause sandboxes that are not its own.
struct Agent {
    host: FakeHost,
    directory: TempDir,
}

impl Agent {
    async fn start() -> Self {
        Self {
            host: FakeHost::start().await.unwrap(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    async fn run(&self, words: &[&str]) -> Ran {
        let mut command = program(self.directory.path());
        command
            .arg("agent")
            .args(words)
            .env("WRENN_AGENT", self.host.url())
            .env("WRENN_AGENT_TOKEN", self.host.token().unwrap());
        let ran = run(command).await;
        assert_eq!(ran.code, Some(0), "{words:?}: {ran:?}");
        ran
    }

    async fn json(&self, words: &[&str]) -> (String, Value) {
        let text = self.run(&[&["--json"], words].concat()).await.stdout;
        let value = serde_json::from_str(&text).unwrap();
        (text, value)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_numbers_and_phases_in_order() {
    let agent = Agent::start().await;
    let words = ["create", "--timeout", "10m", "-m", "countBytes=07"];
    let id = agent.run(&words).await.stdout;
    let (text, got) = agent.json(&["get", id.trim_end()]).await;
    let sandbox = &got["sandbox"];
    assert_eq!(sandbox["timeoutSec"], 600);
    assert_eq!(sandbox["metadata"]["countBytes"], "07");
    let phases = sandbox["phasesMs"].as_object().unwrap();
    for took in phases.values() {
        let tenths = took.as_f64().unwrap() * 10.0;
        assert!((tenths - tenths.round()).abs() < 1e-6, "{text}");
    }
    let position = |phase: &str| text.find(&format!("\"{phase}\"")).unwrap();
    // The fake host has a phase of its own.
    assert!(position("disk") < position("guest"), "{text}");
    assert!(position("guest") < position("total"), "{text}");
    // Members are in the order of the protocol.
    assert!(position("id") < position("template"), "{text}");
    let (_, host) = agent.json(&["info"]).await;
    assert!(host["maxMemoryMib"].is_u64(), "{host}");
    let (_, metrics) = agent.json(&["metrics", id.trim_end()]).await;
    assert!(metrics["memoryBytes"].is_u64(), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_aligned() {
    let agent = Agent::start().await;
    for memory in ["128M", "2G"] {
        agent.run(&["create", "--memory", memory]).await;
    }
    let id = agent.run(&["create"]).await.stdout;
    let long = "a-name-that-is-longer-than-an-id-of-a-sandbox";
    for name in ["warm", long] {
        agent
            .run(&["snapshot", "create", id.trim_end(), name])
            .await;
    }
    for (words, column) in [(&["list"][..], "STATE"), (&["snapshot", "list"], "FROM")] {
        let table = agent.run(words).await.stdout;
        let at = table.find(column).unwrap();
        let mut lines = table.lines();
        lines.next();
        for line in lines {
            let (before, after) = line.split_at(at);
            assert!(before.ends_with("  ") && !after.starts_with(' '), "{table}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_snapshots_are_printed_with_users() {
    let agent = Agent::start().await;
    let id = agent.run(&["create"]).await.stdout;
    for name in ["cold", "warm", "hot"] {
        agent
            .run(&["snapshot", "create", id.trim_end(), name])
            .await;
    }
    let user = agent.run(&["create", "--template", "warm"]).await.stdout;
    let ran = agent.run(&["snapshot", "delete", "cold", "warm"]).await;
    assert_eq!(ran.stdout, "cold\nwarm\n");
    let said = format!("wrenn: warm: its data is kept for {user}");
    assert!(ran.stderr.contains(&said), "{ran:?}");
    assert!(!ran.stderr.contains("cold"), "{ran:?}");
    let (_, deleted) = agent.json(&["snapshot", "delete", "hot"]).await;
    assert_eq!(deleted["deleted"], "hot");
    assert!(deleted["stillNeededBy"].is_array(), "{deleted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_console_is_told_in_one_sentence() {
    let agent = Agent::start().await;
    let id = agent.run(&["create"]).await.stdout;
    let id = id.trim_end();
    agent.host.clear_console(id);
    let ran = agent.run(&["console", id]).await;
    let said = "wrenn: the console is empty: a healthy guest boots quietly\n";
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", said));
    agent.host.write_console(id, b"panic\n");
    let ran = agent.run(&["console", id]).await;
    assert!(ran.stdout.ends_with("panic\n"), "{ran:?}");
    assert_eq!(ran.stderr, "");
}
