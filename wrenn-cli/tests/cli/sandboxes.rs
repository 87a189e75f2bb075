//! Sandboxes: what is printed, and exit codes.

use serde_json::Value;

use crate::wrenn::Wrenn;

#[tokio::test(flavor = "multi_thread")]
async fn create_prints_id_alone() {
    let wrenn = Wrenn::start().await;
    let ran = wrenn.run(&["sandbox", "create"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let id = ran.stdout.trim_end();
    assert!(id.starts_with("sb") && id.len() == 22, "{ran:?}");
    assert_eq!(ran.stderr, "");
    let listed = wrenn.ok(&["sandbox", "list", "-q"]).await;
    assert_eq!(listed, ran.stdout);
    let json = wrenn.ok(&["sandbox", "create", "--json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_console_is_told() {
    let wrenn = Wrenn::start().await;
    let id = wrenn.ok(&["sandbox", "create", "--name", "web"]).await;
    wrenn.server.host().clear_console(id.trim_end());
    let ran = wrenn.run(&["sandbox", "logs", "web"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""));
    let said = "wrenn: the console is empty: a healthy guest boots quietly\n";
    assert_eq!(ran.stderr, said);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_stand_for_ids_everywhere() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    for words in [
        &["pause", "web"][..],
        &["resume", "web", "--timeout", "10m"],
        &["ping", "web"],
        &["exec", "web", "--", "true"],
        &["logs", "web"],
        &["ps", "web"],
        &["get", "web"],
        &["fork", "web", "--name", "copy"],
        &["destroy", "web", "copy"],
    ] {
        let words = [&["sandbox"], words].concat();
        wrenn.ok(&words).await;
    }
    assert_eq!(wrenn.ok(&["sandbox", "list", "-q"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_are_done_though_one_fails() {
    let wrenn = Wrenn::start().await;
    wrenn.create("one").await;
    wrenn.create("two").await;
    let ran = wrenn.run(&["sandbox", "pause", "one", "none", "two"]).await;
    assert_eq!(ran.code, Some(1));
    assert_eq!(
        ran.stderr,
        "wrenn: none: there is no sandbox 'none'; `wrenn sandbox list` lists those that there are\n"
    );
    let paused = wrenn
        .ok(&["sandbox", "list", "--status", "paused", "-q"])
        .await;
    assert_eq!(paused.lines().count(), 2);
    wrenn.ok(&["sandbox", "destroy", "--all"]).await;
    assert_eq!(wrenn.ok(&["sandbox", "list", "-q"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_of_guests_do_not_reach_terminals() {
    let wrenn = Wrenn::start().await;
    let evil = "note=\u{1b}]52;c;cm0gLXJm\u{7}\u{9b}2J";
    wrenn
        .ok(&["sandbox", "create", "--name", "web", "-m", evil])
        .await;
    wrenn
        .ok(&[
            "sandbox",
            "exec",
            "-d",
            "web",
            "--",
            "sh",
            "-c",
            "sleep 60; : \u{1b}[2J",
        ])
        .await;
    for words in [
        &["get", "web"][..],
        &["get", "web", "--json"],
        &["list"],
        &["list", "--json"],
        &["ps", "web"],
        &["ps", "web", "--json"],
    ] {
        let words = [&["sandbox"], words].concat();
        let stdout = wrenn.ok(&words).await;
        let code = stdout.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(code, None, "{words:?}: {stdout:?}");
    }
    let missing = wrenn.run(&["sandbox", "get", "a\u{1b}[2Jb"]).await;
    assert_eq!(missing.code, Some(1));
    assert!(!missing.stderr.contains('\u{1b}'), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered() {
    let wrenn = Wrenn::start().await;
    for (name, project) in [("a", "shop"), ("b", "blog")] {
        let pair = format!("project={project}");
        wrenn
            .ok(&["sandbox", "create", "--name", name, "-m", &pair])
            .await;
    }
    let shop = wrenn
        .ok(&["sandbox", "list", "-m", "project=shop", "--json"])
        .await;
    let shop: Value = serde_json::from_str(&shop).unwrap();
    assert_eq!(shop.as_array().unwrap().len(), 1);
    assert_eq!(shop[0]["name"], "a");
    let usage = wrenn.run(&["sandbox", "list", "--status", "asleep"]).await;
    assert_eq!(usage.code, Some(2));
    assert!(usage.stderr.contains("running"), "{usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn thrown_away_sandbox_is_gone_with_its_exit_code() {
    let wrenn = Wrenn::start().await;
    let words = [
        "sandbox",
        "create",
        "--rm",
        "-e",
        "A=b",
        "--",
        "sh",
        "-c",
        "echo $A; exit 4",
    ];
    let ran = wrenn.run(&words).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(4), "b\n"), "{ran:?}");
    assert_eq!(wrenn.ok(&["sandbox", "list", "-q"]).await, "");
    let usage = wrenn.run(&["sandbox", "create", "--rm"]).await;
    assert_eq!(usage.code, Some(2));
    assert!(usage.stderr.contains("add -it"), "{usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_made_used_and_deleted() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let words = [
        "sandbox",
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "echo warm > state",
    ];
    wrenn.ok(&words).await;
    let name = wrenn.ok(&["snapshot", "create", "web", "warm"]).await;
    assert_eq!(name, "warm\n");
    let taken = wrenn.run(&["snapshot", "create", "web", "warm"]).await;
    assert_eq!(taken.code, Some(1));
    assert!(taken.stderr.contains("--overwrite"), "{taken:?}");
    wrenn
        .ok(&["snapshot", "create", "web", "warm", "--overwrite"])
        .await;
    wrenn
        .ok(&["sandbox", "create", "--template", "warm", "--name", "again"])
        .await;
    let state = wrenn
        .ok(&["sandbox", "exec", "again", "--", "cat", "state"])
        .await;
    assert_eq!(state, "warm\n");
    assert_eq!(wrenn.ok(&["snapshot", "list", "-q"]).await, "warm\n");
    wrenn.ok(&["snapshot", "delete", "warm"]).await;
    assert_eq!(wrenn.ok(&["snapshot", "list", "-q"]).await, "");
    let templates = wrenn.ok(&["template", "list", "-q"]).await;
    assert!(templates.lines().any(|name| name == "base"), "{templates}");
}
