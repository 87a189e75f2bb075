//! Files and directories.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use wrenn_api::error::ErrorCode;
use wrenn_api::file::{ChangeKind, FileKind};
use wrenn_testing::TestServer;

use crate::linked::Linked;

#[tokio::test]
async fn files_are_written_listed_moved_and_removed() {
    let server = TestServer::start().await.unwrap();
    let sandbox = server
        .sdk()
        .unwrap()
        .sandboxes()
        .create("base")
        .await
        .unwrap();
    let files = sandbox.files();
    files
        .write("deep/er/run", "#!/bin/sh\necho ran\n")
        .mode(0o755)
        .await
        .unwrap();
    let entry = files.stat("deep/er/run").await.unwrap();
    assert_eq!(
        (entry.kind, entry.mode & 0o7777, entry.size),
        (FileKind::File, 0o755, 19)
    );
    let ran = sandbox.shell("./deep/er/run").await.unwrap();
    assert_eq!(ran.stdout_text(), "ran\n");
    files.make_dir("deep/empty").await.unwrap();
    let names = |entries: Vec<wrenn_api::file::FileEntry>| {
        let mut names: Vec<_> = entries.into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    };
    assert_eq!(names(files.list("deep").await.unwrap()), ["empty", "er"]);
    assert_eq!(
        names(files.list("deep").depth(2).await.unwrap()),
        ["empty", "er", "run"]
    );
    files.rename("deep/er/run", "deep/run").await.unwrap();
    assert!(!files.exists("deep/er/run").await.unwrap());
    assert!(files.exists("deep/run").await.unwrap());
    files.remove("deep").await.unwrap();
    let gone = files.read("deep/run").await.unwrap_err();
    assert_eq!(gone.code(), Some(ErrorCode::NotFound));
}

#[tokio::test]
async fn large_files_and_directories_go_both_ways() {
    let server = TestServer::start().await.unwrap();
    let sandbox = server
        .sdk()
        .unwrap()
        .sandboxes()
        .create("base")
        .await
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let local = |name: &str| directory.path().join(name);
    let contents: Vec<u8> = (0..20_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    fs::write(local("large"), &contents).unwrap();
    fs::set_permissions(local("large"), fs::Permissions::from_mode(0o640)).unwrap();
    let files = sandbox.files();
    let uploaded = files.upload(local("large"), "large").await.unwrap();
    assert_eq!(uploaded.bytes, contents.len() as u64);
    assert_eq!(files.stat("large").await.unwrap().mode & 0o7777, 0o640);
    let too_large = files.read("large").await.unwrap_err();
    assert_eq!(too_large.code(), Some(ErrorCode::TooLarge));
    files.download("large", local("back")).await.unwrap();
    assert!(fs::read(local("back")).unwrap() == contents);
    let mode = fs::metadata(local("back")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);

    fs::create_dir_all(local("tree/a/empty")).unwrap();
    fs::write(local("tree/a/script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(local("tree/a/script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(local("tree").join("ü".repeat(100)), &contents).unwrap();
    symlink("a/script", local("tree/link")).unwrap();
    fs::create_dir(local("tree/bin")).unwrap();
    symlink("/usr/bin/python3", local("tree/bin/python")).unwrap();
    files.upload_dir(local("tree"), "tree").await.unwrap();
    let found = sandbox
        .shell("cd tree && test -x a/script && readlink link bin/python")
        .await
        .unwrap();
    assert_eq!(found.stdout_text(), "a/script\n/usr/bin/python3\n");
    sandbox
        .shell("ln -s /etc tree/out; mkfifo tree/pipe")
        .await
        .unwrap();
    let copied = files.download_dir("tree", local("tree2")).await.unwrap();
    let mut skipped: Vec<_> = copied
        .skipped
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    skipped.retain(|name| *name != "pipe");
    assert_eq!(skipped, [""; 0]);
    let mut outward = copied.outward_links;
    outward.sort();
    assert_eq!(outward, ["bin/python", "out"]);
    for (name, target) in [("bin/python", "/usr/bin/python3"), ("out", "/etc")] {
        let link = fs::read_link(local("tree2").join(name)).unwrap();
        assert_eq!(link.to_str(), Some(target));
    }
    let inward = files.download_dir("tree", local("tree3"));
    let copied = inward.without_outward_links().await.unwrap();
    assert_eq!(copied.outward_links, [""; 0]);
    assert!(local("tree3/out").symlink_metadata().is_err());
    assert!(fs::read(local("tree2").join("ü".repeat(100))).unwrap() == contents);
    assert_eq!(
        fs::read_link(local("tree2/link")).unwrap().to_str(),
        Some("a/script")
    );
    assert!(local("tree2/a/empty").is_dir());
}

/// Bytes that do not repeat.
fn contents(size: usize) -> Vec<u8> {
    let numbers = (0..size as u64 / 8 + 1).flat_map(u64::to_le_bytes);
    numbers.take(size).collect()
}

#[tokio::test]
async fn download_survives_cut_links() {
    const SIZE: usize = 24 << 20;
    let linked = Linked::start().await;
    let (server, link, sandbox) = (&linked.server, &linked.link, &linked.sandbox);
    let home = server.host().home(sandbox.id().as_str()).unwrap();
    fs::write(home.join("large"), contents(SIZE)).unwrap();
    sandbox.shell("ln -s large link").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    for name in ["large", "link"] {
        let local = directory.path().join(name);
        let (cut, cuts) = (Arc::clone(link), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&cuts);
        let download = sandbox.files().download(name, &local);
        let downloaded = download
            .on_progress(move |progress| {
                assert_eq!(progress.total, Some(SIZE as u64));
                if progress.done > (counted.load(Relaxed) + 1) * SIZE as u64 / 5 {
                    counted.fetch_add(1, Relaxed);
                    cut.cut();
                }
            })
            .await
            .unwrap();
        assert_eq!(downloaded.bytes, SIZE as u64);
        assert_eq!(cuts.load(Relaxed), 4);
        assert!(
            Sha256::digest(fs::read(&local).unwrap()) == Sha256::digest(contents(SIZE)),
            "every byte is there once"
        );
    }
}

#[tokio::test]
async fn download_of_changed_file_is_refused() {
    const SIZE: usize = 24 << 20;
    let linked = Linked::start().await;
    let (server, link, sandbox) = (&linked.server, &linked.link, &linked.sandbox);
    let home = server.host().home(sandbox.id().as_str()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let local = directory.path().join("local");
    fs::write(&local, "old").unwrap();
    // Of the same size, shorter, and another file under the name.
    let changes: [fn(&Path); 3] = [
        |path| fs::write(path, vec![1; SIZE]).unwrap(),
        |path| fs::write(path, "short").unwrap(),
        |path| {
            fs::write(path.with_extension("new"), vec![1; SIZE]).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        },
    ];
    for change in changes {
        let path = home.join("large");
        fs::write(&path, contents(SIZE)).unwrap();
        let (cut, mut done) = (Arc::clone(link), false);
        let download = sandbox.files().download("large", &local);
        let download = download.on_progress(move |progress| {
            if progress.done > SIZE as u64 / 3 && !std::mem::replace(&mut done, true) {
                change(&path);
                cut.cut();
            }
        });
        let refused = download.await.unwrap_err();
        assert!(
            matches!(refused, wrenn_sdk::Error::FileChanged { .. }),
            "{refused:?}"
        );
        assert_eq!(fs::read_to_string(&local).unwrap(), "old");
    }
    let left = fs::read_dir(directory.path()).unwrap();
    assert_eq!(left.count(), 1, "no temporary file stays");
}

#[tokio::test]
async fn upload_over_cut_link_says_to_start_again() {
    const SIZE: usize = 8 << 20;
    const CUTS: u64 = 16;
    let linked = Linked::start().await;
    let (link, files) = (&linked.link, linked.sandbox.files());
    let home = linked.server.host().home(linked.sandbox.id().as_str());
    let remote = home.unwrap().join("large");
    let directory = tempfile::tempdir().unwrap();
    let local = directory.path().join("local");
    fs::write(&local, contents(SIZE)).unwrap();
    for cut in 0..CUTS {
        fs::write(&remote, "old").unwrap();
        let link = Arc::clone(link);
        let upload = files.upload(&local, "large");
        let upload = upload.on_progress(move |progress| {
            if progress.done > cut * SIZE as u64 / CUTS / 2 {
                link.cut();
            }
        });
        let broken = upload.await.unwrap_err();
        assert!(
            matches!(broken, wrenn_sdk::Error::UploadInterrupted { sent, .. } if sent > 0),
            "{broken:?}"
        );
        assert!(broken.to_string().contains("start it again"), "{broken}");
        // Or the cut came when all had arrived, and took the answer alone.
        let present = fs::read(&remote).unwrap();
        let is_whole = present == b"old" || present == contents(SIZE);
        assert!(is_whole, "a part of {} bytes", present.len());
    }
    let again = files.upload(&local, "large").await.unwrap();
    assert_eq!(again.bytes, SIZE as u64);
}

#[tokio::test]
async fn watch_tells_changes() {
    let server = TestServer::start().await.unwrap();
    let sandbox = server
        .sdk()
        .unwrap()
        .sandboxes()
        .create("base")
        .await
        .unwrap();
    sandbox.files().make_dir("watched/below").await.unwrap();
    let mut watcher = sandbox.files().watch_recursive("watched").await.unwrap();
    sandbox.shell("touch watched/below/new").await.unwrap();
    let change = tokio::time::timeout(Duration::from_secs(10), watcher.next());
    let change = change.await.unwrap().unwrap();
    assert_eq!(
        (change.name.as_str(), change.kind),
        ("below/new", ChangeKind::Created)
    );
    watcher.close().await;
    let missing = sandbox.files().watch("nowhere").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing:?}");
}
