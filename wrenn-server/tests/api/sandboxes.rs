//! The life of a sandbox, over HTTP.

use std::collections::HashSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use wrenn_testing::Rpc;
use wrenn_testing::proto::{ErrorCode, Reason};

use crate::client::Api;

#[tokio::test(flavor = "multi_thread")]
async fn sandbox_goes_through_its_life() {
    let api = Api::start().await;
    let body = json!({
        "name": "web", "timeout_sec": 600, "metadata": {"team": "red"}, "env": {"GREETING": "hi"},
    });
    let created = api.post("/v1/sandboxes", body).await.ok(201);
    assert_eq!(created["status"], "running");
    assert_eq!(created["source"], json!({"template": "base"}));
    assert!(created["started_at"].is_string(), "{created}");
    let id = created["id"].as_str().unwrap();
    for reference in [id, "web"] {
        let got = api.get(&format!("/v1/sandboxes/{reference}")).await.ok(200);
        assert_eq!(got["id"], id);
    }
    let exec = json!({"cmd": "sh", "args": ["-c", "echo $GREETING; echo oops >&2; exit 3"]});
    let ran = api.post("/v1/sandboxes/web/exec", exec).await.ok(200);
    assert_eq!(ran["stdout"], "hi\n");
    assert_eq!(ran["stderr"], "oops\n");
    assert_eq!(
        (&ran["exit_code"], &ran["timed_out"]),
        (&json!(3), &json!(false))
    );

    let pinged = api
        .post("/v1/sandboxes/web/ping", json!({"timeout_sec": 60}))
        .await
        .ok(200);
    assert_eq!(pinged["timeout_sec"], 60);
    let patched = api
        .send(
            api.request(Method::PATCH, "/v1/sandboxes/web")
                .json(&json!({"name": "db", "metadata": {"team": "blue"}})),
        )
        .await
        .ok(200);
    assert_eq!(
        (&patched["name"], &patched["metadata"]["team"]),
        (&json!("db"), &json!("blue"))
    );
    api.get("/v1/sandboxes/web")
        .await
        .refused(404, "not_found", "");

    let paused = api.post("/v1/sandboxes/db/pause", json!({})).await.ok(200);
    assert_eq!(paused["status"], "paused");
    assert!(paused["paused_at"].is_string());
    api.post("/v1/sandboxes/db/pause", json!({})).await.ok(200);
    let resumed = api
        .post("/v1/sandboxes/db/resume", json!({"timeout_sec": 9}))
        .await
        .ok(200);
    assert_eq!(
        (&resumed["status"], &resumed["timeout_sec"]),
        (&json!("running"), &json!(9))
    );

    let forked = api
        .post("/v1/sandboxes/db/fork", json!({"count": 2}))
        .await
        .ok(201);
    let children = forked["items"].as_array().unwrap();
    assert_eq!(children.len(), 2);
    assert_eq!(children[0]["sandbox"]["source"], json!({"fork_of": id}));

    api.delete("/v1/sandboxes/db").await.ok(204);
    assert_eq!(
        api.get(&format!("/v1/sandboxes/{id}")).await.ok(200)["status"],
        "stopped"
    );
    api.delete(&format!("/v1/sandboxes/{id}")).await.ok(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn list_is_paged_and_filtered() {
    let api = Api::start().await;
    let mut all = HashSet::new();
    for index in 0..7 {
        let body = json!({"metadata": {"odd": (index % 2 == 1).to_string()}});
        let created = api.post("/v1/sandboxes", body).await.ok(201);
        all.insert(created["id"].as_str().unwrap().to_owned());
    }
    for filter in ["", "metadata=odd%3Dtrue&"] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = api
                .get(&format!("/v1/sandboxes?{filter}limit=2{cursor}"))
                .await
                .ok(200);
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 2);
            seen.extend(
                items
                    .iter()
                    .map(|item| item["id"].as_str().unwrap().to_owned()),
            );
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let wanted = if filter.is_empty() { 7 } else { 3 };
        assert_eq!(seen.len(), wanted);
        assert_eq!(seen.iter().collect::<HashSet<_>>().len(), wanted);
    }
    let first = all.iter().next().unwrap();
    api.delete(&format!("/v1/sandboxes/{first}")).await.ok(204);
    let alive = api.get("/v1/sandboxes").await.ok(200);
    assert_eq!(alive["items"].as_array().unwrap().len(), 6);
    let stopped = api.get("/v1/sandboxes?status=stopped").await.ok(200);
    assert_eq!(stopped["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_in_background_can_be_waited_for() {
    let api = Api::start().await;
    let created = api
        .post("/v1/sandboxes", json!({"wait": false}))
        .await
        .ok(201);
    assert_eq!(created["status"], "pending");
    let id = created["id"].as_str().unwrap();
    let got = api
        .get(&format!(
            "/v1/sandboxes/{id}?wait_for=running&wait_ms=20000"
        ))
        .await;
    assert_eq!(got.ok(200)["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_replays_the_answer() {
    let api = Api::start().await;
    let create = |key: &str, body: serde_json::Value| {
        let request = api.request(Method::POST, "/v1/sandboxes");
        api.send(request.header("idempotency-key", key).json(&body))
    };
    let first = create("one", json!({"name": "a"})).await;
    first.ok(201);
    let again = create("one", json!({"name": "a"})).await;
    assert_eq!(again.ok(201), first.json());
    assert_eq!(again.headers["idempotency-replayed"], "true");
    create("one", json!({"name": "b"}))
        .await
        .refused(422, "idempotency_mismatch", "new key");
    create(&"k".repeat(256), json!({}))
        .await
        .refused(400, "invalid_request", "1 to 255");
    assert_eq!(api.server.host().sandboxes().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_become_templates() {
    let api = Api::start().await;
    let id = api.create().await;
    let made = api
        .post("/v1/snapshots", json!({"sandbox_id": id, "name": "warm"}))
        .await
        .ok(201);
    assert_eq!(
        (&made["type"], &made["vcpus"]),
        (&json!("snapshot"), &json!(1))
    );
    let listed = api.get("/v1/snapshots?name=warm").await.ok(200);
    assert_eq!(listed["items"][0]["id"], made["id"]);
    let templates = api.get("/v1/templates").await.ok(200);
    let names: Vec<_> = templates["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|template| template["name"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        names.contains(&"base".to_owned()) && names.contains(&"warm".to_owned()),
        "{names:?}"
    );
    assert_eq!(
        api.get("/v1/templates/warm").await.ok(200)["id"],
        made["id"]
    );
    let spawned = api
        .post("/v1/sandboxes", json!({"template": "warm"}))
        .await
        .ok(201);
    assert_eq!(spawned["source"]["snapshot"], made["id"]);
    let deleted = api.delete("/v1/snapshots/warm").await.ok(200);
    assert!(deleted["still_needed_by"].is_array());
    api.post("/v1/sandboxes", json!({"template": "warm"}))
        .await
        .refused(404, "not_found", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_is_not_there_ends_with_127() {
    let api = Api::start().await;
    let id = api.create().await;
    let exec = format!("/v1/sandboxes/{id}/exec");
    let ran = api
        .post(&exec, json!({"cmd": "no-such-program"}))
        .await
        .ok(200);
    assert_eq!(ran["exit_code"], 127);
    assert!(
        ran["stderr"].as_str().unwrap().contains("no-such-program"),
        "{ran}"
    );
    let ran = api.post(&exec, json!({"cmd": "/etc/passwd"})).await.ok(200);
    assert_eq!(ran["exit_code"], 126, "{ran}");
    let slow = json!({"cmd": "sleep", "args": ["60"], "timeout_sec": 1});
    let ran = api.post(&exec, slow).await.ok(200);
    assert_eq!(
        (&ran["timed_out"], &ran["exit_code"]),
        (&json!(true), &json!(137))
    );
    let bytes = json!({"cmd": "printf", "args": ["\\377"]});
    let ran = api.post(&exec, bytes).await.ok(200);
    assert_eq!(
        (&ran["encoding"], &ran["stdout"]),
        (&json!("base64"), &json!("/w=="))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn background_command_is_found_by_its_tag() {
    let api = Api::start().await;
    let id = api.create().await;
    let body = json!({"cmd": "sleep", "args": ["60"], "background": true, "tag": "nap"});
    let started = api
        .post(&format!("/v1/sandboxes/{id}/exec"), body)
        .await
        .ok(202);
    assert_eq!(started["tag"], "nap");
    let processes = format!("/v1/sandboxes/{id}/processes");
    let listed = api.get(&processes).await.ok(200);
    assert_eq!(listed["items"][0]["pid"], started["pid"]);
    assert_eq!(listed["items"][0]["tag"], "nap");
    api.delete(&format!("{processes}/nap")).await.ok(204);
    for _ in 0..200 {
        if api.get(&processes).await.ok(200)["items"] == json!([]) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_logs_are_told() {
    let api = Api::start().await;
    let id = api.create().await;
    let metrics = api
        .get(&format!("/v1/sandboxes/{id}/metrics"))
        .await
        .ok(200);
    assert!(metrics["points"][0]["memory_bytes"].is_u64(), "{metrics}");
    let logs = api.get(&format!("/v1/sandboxes/{id}/logs")).await;
    assert_eq!(logs.status, 200);
    assert_eq!(logs.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(logs.headers["x-content-type-options"], "nosniff");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_start_command_is_read() {
    let api = Api::start().await;
    let id = api.create().await;
    let logs = |query: &str| format!("/v1/sandboxes/{id}/logs?source=start{query}");
    let none = api.get(&logs("")).await;
    none.refused(404, "not_found", "no start command");
    // As a host starts the command of a template.
    let script = "echo one; echo two >&2; read line; echo $line";
    let body = json!({"cmd": "sh", "args": ["-c", format!("{{ {script}; }} < pipe")],
        "background": true, "tag": "start", "timeout_sec": 0});
    let exec = format!("/v1/sandboxes/{id}/exec");
    let made = api.post(&exec, json!({"cmd": "mkfifo", "args": ["pipe"]}));
    made.await.ok(200);
    api.post(&exec, body).await.ok(202);
    let follow = api.request(Method::GET, &logs("&follow=true"));
    let mut followed = follow.send().await.unwrap();
    // A shell that opens the pipe for writing lets the command begin.
    let open = json!({"cmd": "sh", "args": ["-c", "exec 3> pipe; sleep 1000"],
        "background": true, "tag": "input", "timeout_sec": 0});
    api.post(&exec, open).await.ok(202);
    let mut text = Vec::new();
    while text.len() < b"one\ntwo\n".len() {
        text.extend(followed.chunk().await.unwrap().unwrap());
    }
    let answer = api.get(&logs("")).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 8));
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    assert_eq!(api.get(&logs("&tail=2")).await.body, text[6..]);
    let beginning = api.get(&logs("&tail=2&start=true")).await;
    assert_eq!(beginning.body, text[..2]);
    let line = json!({"cmd": "sh", "args": ["-c", "echo three > pipe"]});
    api.post(&exec, line).await.ok(200);
    // The command ends, and what follows it as well.
    while let Some(chunk) = followed.chunk().await.unwrap() {
        text.extend(chunk);
    }
    assert!(
        text.ends_with(b"three\n"),
        "{}",
        String::from_utf8_lossy(&text)
    );
    api.post(&format!("/v1/sandboxes/{id}/pause"), json!({}))
        .await
        .ok(200);
    let paused = api.get(&logs("")).await;
    paused.refused(409, "invalid_state", "resume it first");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_outcome_is_retried_only_where_safe() {
    let api = Api::start().await;
    let id = api.create().await;
    let host = api.server.host();
    let fail = |rpc| {
        host.fault(rpc)
            .always()
            .fail(ErrorCode::Internal, Reason::REASON_INTERNAL);
    };
    fail(Rpc::Exec);
    fail(Rpc::GetMetrics);
    let exec = format!("/v1/sandboxes/{id}/exec");
    let ran = api.post(&exec, json!({"cmd": "true"})).await;
    ran.refused(502, "agent_error", "the agent");
    assert_eq!(ran.headers["should-retry"], "false");
    assert!(!ran.headers.contains_key("retry-after"));
    let metrics = api.get(&format!("/v1/sandboxes/{id}/metrics")).await;
    metrics.refused(502, "agent_error", "the agent");
    assert_eq!(metrics.headers["should-retry"], "true");
}
