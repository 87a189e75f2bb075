//! Files and directories, with servers and guests that misbehave.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::{get, post, put};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;
use wrenn_sdk::{ArchiveError, Error};

use crate::server::serve_sandbox;

const FILES: &str = "/v1/sandboxes/{id}/files";

fn entry() -> serde_json::Value {
    json!({
        "name": "f", "path": "/f", "kind": "file", "size": 8, "mode": 0o100750,
        "owner": "user", "group": "user",
    })
}

#[tokio::test]
async fn broken_download_leaves_old_file() {
    let content = || async {
        let chunks = futures::stream::iter([
            Ok(Bytes::from_static(b"half")),
            Err(io::Error::other("cut")),
        ]);
        // So that the first chunk is out before the cut.
        Body::from_stream(chunks.then(|chunk| async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            chunk
        }))
    };
    let routes = Router::new()
        .route(
            &format!("{FILES}/stat"),
            post(|| async { axum::Json(entry()) }),
        )
        .route(&format!("{FILES}/content"), get(content));
    let sandbox = serve_sandbox(routes).await;
    let directory = tempfile::tempdir().unwrap();
    let local = directory.path().join("f");
    fs::write(&local, "old").unwrap();
    let error = sandbox.files().download("/f", &local).await.unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
    assert_eq!(fs::read(&local).unwrap(), b"old");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn download_keeps_mode_and_reports_progress() {
    use std::os::unix::fs::PermissionsExt as _;
    let routes = Router::new()
        .route(
            &format!("{FILES}/stat"),
            post(|| async { axum::Json(entry()) }),
        )
        .route(&format!("{FILES}/content"), get(|| async { "contents" }));
    let sandbox = serve_sandbox(routes).await;
    let directory = tempfile::tempdir().unwrap();
    let local = directory.path().join("f");
    let last = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&last);
    let download = sandbox.files().download("/f", &local);
    let copied = download
        .on_progress(move |progress| *seen.lock().unwrap() = Some((progress.done, progress.total)));
    assert_eq!(copied.await.unwrap().bytes, 8);
    assert_eq!(*last.lock().unwrap(), Some((8, Some(8))));
    let mode = fs::metadata(&local).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o750);
    // A link is followed.
    let link = directory.path().join("link");
    fs::write(&local, "old").unwrap();
    std::os::unix::fs::symlink(&local, &link).unwrap();
    sandbox.files().download("/f", &link).await.unwrap();
    assert!(link.is_symlink());
    assert_eq!(fs::read(&local).unwrap(), b"contents");
}

#[tokio::test]
async fn refused_upload_says_why() {
    // The body is read first: a connection that is closed with unread bytes loses the answer.
    let refuse = |body: axum::body::Body| async {
        axum::body::to_bytes(body, usize::MAX).await.ok();
        let body = json!({ "error": { "code": "guest_disk_full", "message": "full" } });
        (StatusCode::INSUFFICIENT_STORAGE, axum::Json(body)).into_response()
    };
    let routes = Router::new()
        .route(&format!("{FILES}/stream/write"), post(refuse))
        .route(&format!("{FILES}/archive"), put(refuse));
    let sandbox = serve_sandbox(routes).await;
    let large = tokio::io::AsyncReadExt::take(tokio::io::repeat(7), 8 << 20);
    let error = sandbox.files().write_from("/f", large).await.unwrap_err();
    assert_eq!(error.to_string(), "full");
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("large"), vec![7; 8 << 20]).unwrap();
    let upload = sandbox.files().upload_dir(directory.path(), "/d");
    assert_eq!(upload.await.unwrap_err().to_string(), "full");
}

#[tokio::test]
async fn upload_that_did_not_arrive_whole_is_an_error() {
    let write = |body: Bytes| async move {
        let size = (body.len() - 1).to_string();
        (StatusCode::NO_CONTENT, [("x-size", size)]).into_response()
    };
    let routes = Router::new().route(&format!("{FILES}/stream/write"), post(write));
    let sandbox = serve_sandbox(routes).await;
    let error = sandbox.files().write("/f", "hello").await.unwrap_err();
    assert!(error.to_string().contains("4 arrived"), "{error}");
}

#[tokio::test]
async fn unreadable_local_file_is_named_and_aborts() {
    let whole = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&whole);
    let archive = move |body: Body| async move {
        let got = axum::body::to_bytes(body, usize::MAX).await;
        *seen.lock().unwrap() = Some(got.is_ok());
        StatusCode::NO_CONTENT
    };
    let routes = Router::new().route(&format!("{FILES}/archive"), put(archive));
    let sandbox = serve_sandbox(routes).await;
    let missing = sandbox.files().upload("/no/such/file", "/f").await;
    assert!(missing.unwrap_err().to_string().contains("/no/such/file"));
    // A directory that cannot be listed in the middle of the archive.
    let missing = sandbox.files().upload_dir("/no/such/directory", "/d").await;
    let error = missing.unwrap_err();
    assert!(error.to_string().contains("/no/such/directory"), "{error}");
    assert_ne!(*whole.lock().unwrap(), Some(true));
}

#[tokio::test]
async fn directories_round_trip_through_archives() {
    let stored = Arc::new(Mutex::new(Bytes::new()));
    let (write, read) = (Arc::clone(&stored), stored);
    let routes = Router::new().route(
        &format!("{FILES}/archive"),
        put(async move |body: Body| {
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            *write.lock().unwrap() = body;
            StatusCode::NO_CONTENT
        })
        .get(async move || read.lock().unwrap().clone()),
    );
    let sandbox = serve_sandbox(routes).await;
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/b/large"), vec![7; 3 << 20]).unwrap();
    sandbox.files().upload_dir(&source, "/d").await.unwrap();
    let target = directory.path().join("target");
    let copied = sandbox.files().download_dir("/d", &target).await.unwrap();
    assert!(copied.skipped.is_empty());
    assert_eq!(
        fs::read(target.join("a/b/large")).unwrap(),
        vec![7; 3 << 20]
    );
}

#[tokio::test]
async fn hostile_archive_stays_in_target() {
    let archive = || async {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        let name = b"../escaped";
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        archive.append(&header, &b"x"[..]).unwrap();
        archive.into_inner().unwrap()
    };
    let routes = Router::new().route(&format!("{FILES}/archive"), get(archive));
    let sandbox = serve_sandbox(routes).await;
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target");
    let error = sandbox
        .files()
        .download_dir("/d", &target)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Archive(ArchiveError::LeadsOut { .. })),
        "{error:?}"
    );
    assert!(!directory.path().join("escaped").exists());
}
