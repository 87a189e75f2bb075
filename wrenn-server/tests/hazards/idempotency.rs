//! One key is one sandbox, however often it is sent.

use futures::future::join_all;
use serde_json::json;
use wrenn_testing::{Rpc, TestServer};

use crate::api::*;

const HEADER: &str = "Idempotency-Key";

fn keyed(key: &str) -> Request {
    Request::create().header(HEADER, key)
}

#[tokio::test]
async fn one_key_twenty_times_makes_one_sandbox() {
    let server = TestServer::start().await.unwrap();
    let request = keyed("one");
    let answers = join_all((0..20).map(|_| request.send(&server))).await;
    let mut ids = Vec::new();
    for answer in &answers {
        match answer.status {
            201 => ids.push(answer.id()),
            409 => assert_eq!(answer.code(), "idempotency_in_progress", "{answer:?}"),
            _ => panic!("{answer:?}"),
        }
    }
    assert!(!ids.is_empty());
    ids.dedup();
    assert_eq!(ids, server.host().sandboxes());
    assert_eq!(server.host().calls(Rpc::CreateSandbox), 1);
    assert_eq!(rows(&server).await.len(), 1);

    let again = request.send(&server).await;
    assert_eq!((again.status, again.id()), (201, ids[0].clone()));
    assert!(again.headers.contains("idempotency-replayed: true"));
    assert_eq!(server.host().calls(Rpc::CreateSandbox), 1);
}

#[tokio::test]
async fn running_request_is_in_progress() {
    let server = TestServer::start().await.unwrap();
    let gate = server.host().hold(Rpc::CreateSandbox);
    let first = keyed("one").begin(&server).await;
    gate.reached().await;
    let second = keyed("one").send(&server).await;
    assert_eq!(second.status, 409, "{second:?}");
    assert_eq!(second.code(), "idempotency_in_progress");
    let other = keyed("two").send(&server).await;
    assert_eq!(other.status, 201, "{other:?}");
    gate.release();
    assert_eq!(read(first).await.status, 201);
    assert_eq!(server.host().sandboxes().len(), 2);
}

#[tokio::test]
async fn other_body_is_a_mismatch() {
    let server = TestServer::start().await.unwrap();
    let first = keyed("one").send(&server).await;
    assert_eq!(first.status, 201, "{first:?}");
    let body = json!({"template": "base", "timeout_sec": 5});
    let other = Request::post("/v1/sandboxes", body).header(HEADER, "one");
    let other = other.send(&server).await;
    assert_eq!(other.status, 422, "{other:?}");
    assert_eq!(other.code(), "idempotency_mismatch");
    assert_eq!(server.host().sandboxes().len(), 1);
}

#[tokio::test]
async fn failed_request_frees_its_key() {
    use wrenn_testing::proto::{ErrorCode, Reason};

    let server = TestServer::start().await.unwrap();
    server
        .host()
        .fault(Rpc::CreateSandbox)
        .fail(ErrorCode::ResourceExhausted, Reason::REASON_HOST_FULL);
    let refused = keyed("one").send(&server).await;
    assert!(refused.status >= 400, "{refused:?}");
    let again = keyed("one").send(&server).await;
    assert_eq!(again.status, 201, "{again:?}");
    assert_eq!(server.host().sandboxes().len(), 1);
}

#[tokio::test]
async fn lost_answer_of_the_host_makes_no_second_sandbox() {
    let server = TestServer::start().await.unwrap();
    server
        .host()
        .fault(Rpc::CreateSandbox)
        .times(2)
        .lose_answer();
    let answer = keyed("one").send(&server).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(server.host().sandboxes(), [answer.id()]);
    assert_eq!(server.host().calls(Rpc::CreateSandbox), 3);
}

/// The server is killed when the row is written and the host was called, or not yet.
#[tokio::test]
async fn key_repeated_after_a_kill_makes_one_sandbox() {
    for has_effect in [false, true] {
        let mut server = TestServer::start().await.unwrap();
        let gate = if has_effect {
            server.host().hold_answer(Rpc::CreateSandbox)
        } else {
            server.host().hold(Rpc::CreateSandbox)
        };
        let connection = keyed("one").begin(&server).await;
        gate.reached().await;
        server.kill().await;
        drop(connection);
        server.boot().await.unwrap();
        let answer = keyed("one").send(&server).await;
        assert_eq!(answer.status, 201, "{has_effect}: {answer:?}");
        // The first call arrives late, if it had no effect before.
        gate.release();
        server.host().wait_for_effects(Rpc::CreateSandbox, 2).await;
        assert_eq!(server.host().sandboxes(), [answer.id()]);
        settles(&server, &answer.id(), "running").await;
        assert_eq!(rows(&server).await.len(), 1);
    }
}
