//! Files over HTTP, and the file tree over RPC.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::io::{Read as _, Write as _};

use common::{TestDaemon, body, get};
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::Request;
use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::filesystem::watch_dir_response::Event;
use wrenn_proto::filesystem::{
    EventType, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest,
    WatchDirRequest,
};
use wrenn_proto::http::{ComposeRequest, ErrorBody, FileEntry};

fn post(path: &str, content_type: &str, bytes: Vec<u8>) -> Request<common::HttpBody> {
    Request::post(format!("/files{path}"))
        .header("content-type", content_type)
        .body(body(bytes))
        .unwrap()
}

#[tokio::test]
async fn uploads_and_downloads() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{}/a/b", dir.path().display());
    let daemon = TestDaemon::start().await;
    let request = post(
        &format!("?path={path}"),
        "application/octet-stream",
        b"0123456789".into(),
    );
    let (status, _, answer) = daemon.http(request).await;
    assert_eq!(status, 200);
    let written: Vec<FileEntry> = serde_json::from_slice(&answer).unwrap();
    assert_eq!(
        (written[0].path.as_str(), written[0].name.as_str()),
        (path.as_str(), "b")
    );

    let (status, headers, bytes) = daemon.http(get(&format!("/files?path={path}"))).await;
    assert_eq!((status.as_u16(), &bytes[..]), (200, &b"0123456789"[..]));
    assert_eq!(headers["content-length"], "10");

    let range = Request::get(format!("/files?path={path}"))
        .header("range", "bytes=3-5")
        .header("accept-encoding", "gzip")
        .body(body(""))
        .unwrap();
    let (status, headers, bytes) = daemon.http(range).await;
    assert_eq!((status.as_u16(), &bytes[..]), (206, &b"345"[..]));
    assert_eq!(headers["content-range"], "bytes 3-5/10");

    let head = Request::head(format!("/files?path={path}"))
        .body(body(""))
        .unwrap();
    let (status, headers, bytes) = daemon.http(head).await;
    assert_eq!((status.as_u16(), bytes.len()), (200, 0));
    assert_eq!(headers["content-length"], "10");
    daemon.stop().await;
}

#[tokio::test]
async fn gzip_goes_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{}/z", dir.path().display());
    let text = "again and again ".repeat(100_000);
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    let daemon = TestDaemon::start().await;
    let mut request = post(
        &format!("?path={path}"),
        "application/octet-stream",
        encoder.finish().unwrap(),
    );
    request
        .headers_mut()
        .insert("content-encoding", "gzip".parse().unwrap());
    assert_eq!(daemon.http(request).await.0, 200);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

    let request = Request::get(format!("/files?path={path}"))
        .header("accept-encoding", "gzip")
        .body(body(""))
        .unwrap();
    let (_, headers, bytes) = daemon.http(request).await;
    assert_eq!(headers["content-encoding"], "gzip");
    let mut decoded = String::new();
    GzDecoder::new(&bytes[..])
        .read_to_string(&mut decoded)
        .unwrap();
    assert!(decoded == text && bytes.len() < text.len() / 10);
    daemon.stop().await;
}

#[tokio::test]
async fn a_form_may_hold_many_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut form = Vec::new();
    for n in 0..30 {
        write!(
            form,
            "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{}/{n}\"\r\n\r\n",
            dir.path().display()
        )
        .unwrap();
        form.extend_from_slice(&vec![n; 50_000]);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(b"--edge--\r\n");
    let daemon = TestDaemon::start().await;
    let request = post("", "multipart/form-data; boundary=edge", form.clone());
    let (status, _, answer) = daemon.http(request).await;
    assert_eq!(status, 200, "{answer:?}");
    let written: Vec<FileEntry> = serde_json::from_slice(&answer).unwrap();
    assert_eq!(written.len(), 30);
    for n in 0..30u8 {
        assert_eq!(
            std::fs::read(dir.path().join(n.to_string())).unwrap(),
            vec![n; 50_000]
        );
    }

    // Cut off in the last file: that one stays as it was, and the client is told.
    std::fs::write(dir.path().join("29"), "old").unwrap();
    form.truncate(form.len() - 1000);
    let request = post("", "multipart/form-data; boundary=edge", form);
    assert_eq!(daemon.http(request).await.0, 400);
    assert_eq!(std::fs::read(dir.path().join("29")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 30);
    daemon.stop().await;
}

#[tokio::test]
async fn bad_requests_are_told_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    let octets = "application/octet-stream";
    let daemon = TestDaemon::start().await;
    let cases = [
        (get(&format!("/files?path={here}/nothing")), 404),
        (get(&format!("/files?path={here}")), 400),
        (
            get(&format!("/files?path={here}&username=nobody-knows-me")),
            401,
        ),
        (post("", octets, vec![]), 400),
        (post(&format!("?path={here}"), octets, b"x".into()), 400),
        (
            post(&format!("?path={here}/x"), "text/html", b"x".into()),
            415,
        ),
        (post("", "multipart/form-data", b"x".into()), 400),
        (
            post("", "multipart/form-data; boundary=e", b"--e--".into()),
            400,
        ),
        (post("?path=/dev/null/x", octets, b"x".into()), 400),
        (get("/nowhere"), 404),
        (Request::delete("/files").body(body("")).unwrap(), 405),
    ];
    for (request, expected) in cases {
        let what = format!("{} {}", request.method(), request.uri());
        let (status, _, answer) = daemon.http(request).await;
        assert_eq!(status.as_u16(), expected, "{what}: {answer:?}");
        let error: ErrorBody = serde_json::from_slice(&answer).unwrap();
        assert_eq!(error.code, expected, "{what}");
        assert!(!error.message.is_empty(), "{what}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn composes_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| format!("{}/{name}", dir.path().display());
    std::fs::write(path("1"), "one ").unwrap();
    std::fs::write(path("2"), "two").unwrap();
    let compose = |sources: &[&str]| {
        let order = ComposeRequest {
            source_paths: sources.iter().map(|name| path(name)).collect(),
            destination: path("whole"),
            username: None,
        };
        let text = serde_json::to_vec(&order).unwrap();
        Request::post("/files/compose").body(body(text)).unwrap()
    };
    let daemon = TestDaemon::start().await;
    assert_eq!(daemon.http(compose(&["1", "missing"])).await.0, 404);
    assert!(
        std::path::Path::new(&path("1")).exists(),
        "a failure removes nothing"
    );
    assert_eq!(daemon.http(compose(&["1", "2"])).await.0, 200);
    assert_eq!(std::fs::read_to_string(path("whole")).unwrap(), "one two");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn the_tree_answers_with_the_right_codes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| format!("{}/{name}", dir.path().display());
    let daemon = TestDaemon::start().await;
    let client = daemon.files();
    let made = client
        .make_dir(MakeDirRequest { path: path("a/b") })
        .await
        .unwrap()
        .into_owned();
    assert_eq!(made.entry.path, path("a/b"));
    let error = client
        .make_dir(MakeDirRequest { path: path("a") })
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    std::fs::write(path("a/file"), "x").unwrap();
    let error = client
        .make_dir(MakeDirRequest {
            path: path("a/file/x"),
        })
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    let error = client
        .stat(StatRequest { path: path("none") })
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    let error = client
        .list_dir(ListDirRequest {
            path: path("a/file"),
            depth: 1,
        })
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    let moved = MoveRequest {
        source: path("a/file"),
        destination: path("c/d"),
    };
    let moved = client.r#move(moved).await.unwrap().into_owned();
    assert_eq!((moved.entry.name.as_str(), moved.entry.size), ("d", 1));
    client
        .remove(RemoveRequest { path: path("a") })
        .await
        .unwrap();
    client
        .remove(RemoveRequest { path: path("a") })
        .await
        .unwrap();
    let list = client
        .list_dir(ListDirRequest {
            path: path(""),
            depth: 2,
        })
        .await
        .unwrap();
    let names: Vec<String> = list
        .into_owned()
        .entries
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    assert_eq!(names, ["c", "d"]);
    daemon.stop().await;
}

#[tokio::test]
async fn streams_changes() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = TestDaemon::start().await;
    let mut stream = daemon
        .files()
        .watch_dir(WatchDirRequest {
            path: dir.path().display().to_string(),
            recursive: true,
            allow_network_mounts: true,
            ..Default::default()
        })
        .await
        .unwrap();
    let first = stream.message().await.unwrap().unwrap().to_owned_message();
    assert!(matches!(first.event, Some(Event::Start(_))));
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let mut wrote = false;
    let follow = async {
        loop {
            let message = stream.message().await.unwrap().unwrap().to_owned_message();
            let Some(Event::Filesystem(change)) = message.event else {
                continue;
            };
            if change.name == "sub" && !wrote {
                std::fs::write(dir.path().join("sub/file"), "x").unwrap();
                wrote = true;
            }
            if change.name == "sub/file" && change.r#type == EventType::Write {
                break;
            }
        }
    };
    tokio::time::timeout(common::PATIENCE, follow)
        .await
        .unwrap();
    daemon.stop().await;
}
