//! Every mistake gets a code, and a sentence that says what to do.

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Api;

#[tokio::test(flavor = "multi_thread")]
async fn creation_refuses_what_it_cannot_use() {
    let api = Api::start().await;
    let cases: Vec<(Value, &str)> = vec![
        (json!({"templat": "base"}), "unknown field `templat`"),
        (json!({"vcpus": "two"}), "invalid type"),
        (json!({"vcpus": 0}), "'vcpus' is 0; give 1 to 32"),
        (json!({"vcpus": 33}), "'vcpus' is 33"),
        (json!({"memory_mb": 1}), "'memory_mb' is 1"),
        (json!({"memory_mb": -1}), "invalid value"),
        (json!({"timeout_sec": u64::MAX}), "'timeout_sec' is"),
        (json!({"name": "Not Good"}), "a name has 1 to 63"),
        (
            json!({"name": "sbaaaaaaaaaaaaaaaaaaaa"}),
            "looks like an id",
        ),
        (json!({"template": ""}), "give a template's name or id"),
        (json!({"template": "a/b"}), "give a template's name or id"),
        (
            json!({"metadata": {"a": "x".repeat(70_000)}}),
            "'metadata' has 70001 bytes",
        ),
        (json!({"metadata": {"a": 1}}), "invalid type"),
        (json!({"env": {"A=B": "c"}}), "has no '='"),
        (json!({"env": {"A": "\u{0}"}}), "zero byte"),
        (
            json!({"network": {"deny": ["example.com"]}}),
            "give an address",
        ),
        (json!({"network": {"denied": []}}), "unknown field `denied`"),
        (
            json!({"end_after_sec": 5}),
            "'end_after_sec' is not offered",
        ),
        (json!({"on_end": "destroy"}), "'on_end' is not offered"),
        (json!({"auto_resume": true}), "'auto_resume' is not offered"),
        (json!({"ports": {"public": true}}), "'ports' is not offered"),
    ];
    for (body, words) in cases {
        let answer = api.post("/v1/sandboxes", body).await;
        answer.refused(400, "invalid_request", words);
    }
    let listed = api.get("/v1/sandboxes").await.ok(200);
    assert_eq!(listed["items"], json!([]), "nothing was made");
    assert_eq!(api.server.host().sandboxes().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bodies_are_refused() {
    let api = Api::start().await;
    for body in [
        "{",
        "[]",
        "\"x\"",
        "nul",
        "\u{0}",
        "{\"template\": \"base\"}}",
    ] {
        let request = api.request(Method::POST, "/v1/sandboxes").body(body);
        api.send(request)
            .await
            .refused(400, "invalid_request", "the body cannot be used");
    }
    let long = "x".repeat(25 << 20);
    let request = api.request(Method::POST, "/v1/sandboxes").body(long);
    api.send(request)
        .await
        .refused(413, "too_large", "streaming");
    // An empty body stands for the defaults.
    api.send(api.request(Method::POST, "/v1/sandboxes"))
        .await
        .ok(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_query_names_and_values_are_named() {
    let api = Api::start().await;
    let id = api.create().await;
    let cases = [
        ("/v1/sandboxes?stat=running", "unknown name 'stat'"),
        (
            "/v1/sandboxes?status=runing",
            "'runing' is no status; expected one of pending running",
        ),
        ("/v1/sandboxes?limit=0", "'limit' is 0"),
        ("/v1/sandboxes?limit=101", "'limit' is 101"),
        ("/v1/sandboxes?limit=many", "'limit' is 'many'"),
        ("/v1/sandboxes?order=up", "give asc or desc"),
        ("/v1/sandboxes?metadata=a", "give key=value"),
        ("/v1/sandboxes?started_after=yesterday", "give a time like"),
        (
            "/v1/sandboxes?cursor=zzz",
            "'cursor' is not one of this server",
        ),
        ("/v1/sandboxes?name=a&name=b", "given more than once"),
        ("/v1/templates?type=iso", "'iso' is no template type"),
        ("/v1/snapshots?limit=0", "'limit' is 0"),
        ("/v1/events?after=x", "'after' is 'x'"),
    ];
    for (path, words) in cases {
        api.get(path).await.refused(400, "invalid_request", words);
    }
    for (query, words) in [
        ("wait_for=up", "'up' is no status"),
        ("wait_ms=60001", "at most 60000"),
        ("wait_ms=soon", "a number of milliseconds"),
    ] {
        let answer = api.get(&format!("/v1/sandboxes/{id}?{query}")).await;
        answer.refused(400, "invalid_request", words);
    }
    for (query, words) in [
        ("tail=9999999", "at most 1048576"),
        ("source=kernel", "give console or start"),
        ("source=start&follow=true&tail=5", "leave it out"),
        ("follow=maybe", "give true or false"),
    ] {
        let answer = api.get(&format!("/v1/sandboxes/{id}/logs?{query}")).await;
        answer.refused(400, "invalid_request", words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cursor_of_another_list_is_refused() {
    let api = Api::start().await;
    for _ in 0..3 {
        api.create().await;
    }
    let page = api.get("/v1/sandboxes?limit=1").await.ok(200);
    let cursor = page["next_cursor"].as_str().unwrap();
    api.get(&format!("/v1/sandboxes?limit=1&cursor={cursor}"))
        .await
        .ok(200);
    let answer = api
        .get(&format!(
            "/v1/sandboxes?limit=1&status=paused&cursor={cursor}"
        ))
        .await;
    answer.refused(400, "invalid_request", "with other filters");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_things_are_not_found() {
    let api = Api::start().await;
    let long = "x".repeat(3000);
    for id in [
        "sbaaaaaaaaaaaaaaaaaaaa",
        "nothing",
        "..%2f..%2fetc",
        "%00",
        &long,
    ] {
        let path = format!("/v1/sandboxes/{id}");
        api.get(&path)
            .await
            .refused(404, "not_found", "there is no sandbox");
        api.delete(&path)
            .await
            .refused(404, "not_found", "there is no sandbox");
        for action in ["pause", "resume", "ping", "fork"] {
            let answer = api.post(&format!("{path}/{action}"), json!({})).await;
            answer.refused(404, "not_found", "there is no sandbox");
        }
    }
    let answer = api.post("/v1/sandboxes", json!({"template": "nope"})).await;
    answer.refused(404, "not_found", "there is no template 'nope'");
    let answer = api
        .post(
            "/v1/sandboxes",
            json!({"template": "tmaaaaaaaaaaaaaaaaaaaa"}),
        )
        .await;
    answer.refused(404, "not_found", "there is no template");
    api.delete("/v1/snapshots/nope")
        .await
        .refused(404, "not_found", "there is no snapshot");
    api.get("/v1/templates/nope")
        .await
        .refused(404, "not_found", "there is no template");
    api.get("/v1/nothing")
        .await
        .refused(404, "not_found", "there is no path");
    let answer = api.send(api.request(Method::PUT, "/v1/sandboxes")).await;
    answer.refused(405, "method_not_allowed", "takes no PUT");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_make_no_sense_are_refused() {
    let api = Api::start().await;
    let id = api.create().await;
    let exec = format!("/v1/sandboxes/{id}/exec");
    for (body, words) in [
        (json!({}), "'cmd' is empty"),
        (
            json!({"cmd": "cat", "stdin": "%%%"}),
            "'stdin' is not base64",
        ),
        (
            json!({"cmd": "cat", "stdin": "YQ==", "background": true}),
            "in the background",
        ),
        (
            json!({"cmd": "true", "command": "x"}),
            "unknown field `command`",
        ),
        (json!({"cmd": "true", "user": "a:b"}), "user"),
    ] {
        api.post(&exec, body)
            .await
            .refused(400, "invalid_request", words);
    }
    let answer = api
        .delete(&format!("/v1/sandboxes/{id}/processes/999999"))
        .await;
    answer.refused(404, "not_found", "");
    let answer = api
        .delete(&format!("/v1/sandboxes/{id}/processes/1?signal=99"))
        .await;
    answer.refused(400, "invalid_request", "signal");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_status_is_a_conflict_that_names_it() {
    let api = Api::start().await;
    let id = api.create().await;
    api.post(&format!("/v1/sandboxes/{id}/pause"), json!({}))
        .await
        .ok(200);
    let answer = api
        .post(&format!("/v1/sandboxes/{id}/exec"), json!({"cmd": "true"}))
        .await;
    answer.refused(409, "invalid_state", "resume it first");
    assert_eq!(answer.json()["error"]["details"]["status"], "paused");
    let answer = api
        .post(&format!("/v1/sandboxes/{id}/ping"), json!({}))
        .await;
    answer.refused(409, "invalid_state", "is paused");
    api.delete(&format!("/v1/sandboxes/{id}")).await.ok(204);
    let answer = api
        .post(&format!("/v1/sandboxes/{id}/resume"), json!({}))
        .await;
    answer.refused(409, "invalid_state", "it was destroyed");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_with_other_size_names_both() {
    let api = Api::start().await;
    let id = api.create().await;
    let body = json!({"sandbox_id": id, "name": "warm"});
    api.post("/v1/snapshots", body.clone()).await.ok(201);
    api.post("/v1/snapshots", body.clone())
        .await
        .refused(409, "template_name_taken", "'warm'");
    api.post("/v1/snapshots?overwrite=true", body).await.ok(201);
    let answer = api
        .post("/v1/sandboxes", json!({"template": "warm", "vcpus": 4}))
        .await;
    answer.refused(
        400,
        "invalid_request",
        "has 1 vCPUs and 512 MiB, and 4 vCPUs and 512 MiB",
    );
}
