//! Events: followed, and resumed.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::client::Api;

/// Reads server-sent events until `enough` holds for all of their text.
async fn read(api: &Api, path: &str, last: Option<&str>, enough: impl Fn(&str) -> bool) -> String {
    let mut request = api.request(Method::GET, path);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let mut response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let reading = async {
        while !enough(&text) {
            let chunk = response.chunk().await.unwrap().expect("the stream goes on");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .expect("the events come");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn events_can_be_resumed() {
    let api = Api::start().await;
    let id = api.create().await;
    api.post(&format!("/v1/sandboxes/{id}/pause"), json!({}))
        .await
        .ok(200);
    let all = read(&api, "/v1/events?after=0", None, |text| {
        text.contains("\"paused\"")
    })
    .await;
    for (kind, status) in [
        ("sandbox.created", "pending"),
        ("sandbox.status", "running"),
        ("sandbox.status", "pausing"),
        ("sandbox.status", "paused"),
    ] {
        let wanted = format!("\"status\":\"{status}\"");
        assert!(
            all.lines()
                .any(|line| line.contains(kind) && line.contains(&wanted)),
            "{kind} {status}: {all}"
        );
    }
    let last = all
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .next_back()
        .unwrap();
    api.delete(&format!("/v1/sandboxes/{id}")).await.ok(204);
    let rest = read(&api, "/v1/events", Some(last), |text| {
        text.contains("\"stopped\"")
    })
    .await;
    assert!(!rest.contains("\"paused\""), "only what came later: {rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn number_of_another_run_asks_for_a_resync() {
    let api = Api::start().await;
    let text = read(&api, "/v1/events?after=99999", None, |text| {
        text.contains("\n\n")
    })
    .await;
    assert!(text.contains("\"type\":\"resync\""), "{text}");
}
