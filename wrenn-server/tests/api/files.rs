//! Files over HTTP: whole, in ranges, as archives.

use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use wrenn_testing::Rpc;

use crate::client::Api;

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_listed_and_removed() {
    let api = Api::start().await;
    let id = api.create().await;
    let files = format!("/v1/sandboxes/{id}/files");
    let base = "/tmp/base";
    let path = format!("{base}/a b.txt");

    let form = Form::new()
        .text("path", path.clone())
        .text("mode", "0750")
        .part("file", Part::bytes(b"hello".to_vec()).file_name("x"));
    let request = api.request(Method::POST, &format!("{files}/write"));
    api.send(request.multipart(form)).await.ok(204);
    let read = api
        .post(&format!("{files}/read"), json!({"path": path}))
        .await;
    assert_eq!(
        (read.status.as_u16(), read.text()),
        (200, "hello".to_owned())
    );
    assert_eq!(read.headers["x-content-type-options"], "nosniff");
    assert_eq!(
        read.headers["content-disposition"],
        "attachment; filename*=UTF-8''a%20b.txt"
    );
    let stat = api
        .post(&format!("{files}/stat"), json!({"path": path}))
        .await
        .ok(200);
    assert_eq!((&stat["kind"], &stat["size"]), (&json!("file"), &json!(5)));
    assert_eq!(stat["mode"].as_u64().unwrap() & 0o777, 0o750);

    api.post(
        &format!("{files}/mkdir"),
        json!({"path": format!("{base}/d")}),
    )
    .await
    .ok(204);
    let to = format!("{base}/d/b");
    api.post(&format!("{files}/move"), json!({"from": path, "to": to}))
        .await
        .ok(204);
    let listed = api
        .post(&format!("{files}/list"), json!({"path": base, "depth": 2}))
        .await
        .ok(200);
    let mut names: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["b", "d"]);
    api.post(
        &format!("{files}/remove"),
        json!({"path": format!("{base}/d")}),
    )
    .await
    .ok(204);
    let gone = api
        .post(&format!("{files}/stat"), json!({"path": to}))
        .await;
    gone.refused(404, "not_found", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_given_in_ranges() {
    let api = Api::start().await;
    let id = api.create().await;
    let files = format!("/v1/sandboxes/{id}/files");
    let path = "/tmp/f";
    let put = api.request(
        Method::POST,
        &format!("{files}/stream/write?path={path}&mode=0600"),
    );
    let written = api.send(put.body("0123456789")).await;
    written.ok(204);
    assert_eq!(written.headers["x-size"], "10");
    let get = |range: &'static str| {
        let request = api.request(Method::GET, &format!("{files}/content?path={path}"));
        api.send(request.header("range", range))
    };
    let whole = api.get(&format!("{files}/content?path={path}")).await;
    assert_eq!(
        (whole.status.as_u16(), whole.text()),
        (200, "0123456789".to_owned())
    );
    assert_eq!(whole.headers["content-length"], "10");
    for (range, wanted, header) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=8-99", "89", "bytes 8-9/10"),
    ] {
        let part = get(range).await;
        assert_eq!(
            (part.status.as_u16(), part.text()),
            (206, wanted.to_owned()),
            "{range}"
        );
        assert_eq!(part.headers["content-range"], header);
    }
    get("bytes=10-")
        .await
        .refused(416, "range_not_satisfiable", "no byte");
    let missing = api.get(&format!("{files}/content?path=/nope")).await;
    missing.refused(404, "not_found", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_upload_leaves_the_old_file() {
    let api = Api::start().await;
    let id = api.create().await;
    let files = format!("/v1/sandboxes/{id}/files");
    let put = api.request(Method::POST, &format!("{files}/stream/write?path=/tmp/d/f"));
    api.send(put.body("old")).await.ok(204);
    let head = format!(
        "POST {files}/stream/write?path=/tmp/d/f HTTP/1.1\r\nhost: localhost\r\n\
         x-api-key: {}\r\ncontent-length: 1000\r\n\r\npart",
        api.server.api_key()
    );
    let list = async || {
        let listed = api
            .post(&format!("{files}/list"), json!({"path": "/tmp/d"}))
            .await
            .ok(200);
        listed["items"].as_array().unwrap().len()
    };
    let mut stream = tokio::net::TcpStream::connect(api.server.address())
        .await
        .unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let uploads = async || api.server.host().calls(Rpc::StreamWriteFile);
    until("the upload is under way", async || uploads().await == 2).await;
    drop(stream);
    until("nothing half-written stays", async || list().await == 1).await;
    let read = api
        .post(&format!("{files}/read"), json!({"path": "/tmp/d/f"}))
        .await;
    assert_eq!(read.text(), "old");
}

/// Polls until a condition holds.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    for _ in 0..500 {
        if condition().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 5 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_make_no_sense_are_refused() {
    let api = Api::start().await;
    let id = api.create().await;
    let files = format!("/v1/sandboxes/{id}/files");
    let send = |path: &str, form: Form| {
        api.send(
            api.request(Method::POST, &format!("{files}/{path}"))
                .multipart(form),
        )
    };
    send("write", Form::new().text("path", "/x")).await.refused(
        400,
        "invalid_request",
        "lacks 'file'",
    );
    send("write", Form::new().text("file", "x")).await.refused(
        400,
        "invalid_request",
        "lacks 'path'",
    );
    send("write", Form::new().text("to", "x")).await.refused(
        400,
        "invalid_request",
        "unknown field 'to'",
    );
    send("write", Form::new().text("mode", "rwx"))
        .await
        .refused(400, "invalid_request", "in octal");
    send(
        "write",
        Form::new()
            .text("path", "/x")
            .text("file", "y".repeat((16 << 20) + 1)),
    )
    .await
    .refused(413, "too_large", "stream/write");
    send(
        "stream/write",
        Form::new().text("file", "x").text("path", "/x"),
    )
    .await
    .refused(400, "invalid_request", "'path' before 'file'");
    let request = api
        .request(Method::POST, &format!("{files}/write"))
        .body("x");
    assert!(api.send(request).await.status.is_client_error());
    let answer = api
        .post(&format!("{files}/list"), json!({"path": "/", "depth": 17}))
        .await;
    answer.refused(400, "invalid_request", "give 1 to 16");
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_travel_as_archives() {
    let api = Api::start().await;
    let id = api.create().await;
    let files = format!("/v1/sandboxes/{id}/files");
    let script = "mkdir -p /tmp/source/sub; printf content > /tmp/source/sub/f; \
        ln -s sub/f /tmp/source/link";
    let exec = format!("/v1/sandboxes/{id}/exec");
    let shell = async |script: &str| {
        let body = json!({"cmd": "sh", "args": ["-c", script]});
        api.post(&exec, body).await.ok(200)
    };
    assert_eq!(shell(script).await["exit_code"], 0);
    let archive = api.get(&format!("{files}/archive?path=/tmp/source")).await;
    assert_eq!(archive.status, 200, "{}", archive.text());
    assert_eq!(archive.headers["content-type"], "application/x-tar");
    let put = || api.request(Method::PUT, &format!("{files}/archive?path=/tmp/target"));
    api.send(put().body(archive.body)).await.ok(204);
    let unpacked = shell("cat /tmp/target/sub/f; readlink /tmp/target/link").await;
    assert_eq!(unpacked["stdout"], "contentsub/f\n");
    let nonsense = "this is no archive, but long enough to be one".repeat(40);
    let answer = api.send(put().body(nonsense)).await;
    answer.refused(400, "invalid_request", "");
}
