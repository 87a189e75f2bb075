use std::fs;
use std::path::Path;
use std::time::Duration;

use wrenn_proto::filesystem::EventType;

use super::*;

fn watch(path: &Path, recursive: bool) -> Watch {
    let target = Target {
        path: path.to_owned(),
        recursive,
        include_entry: true,
        allow_network_mounts: true,
    };
    Watch::new(WatchTree::open(target).unwrap()).unwrap()
}

/// Events until one of that kind and name.
async fn until(watch: &mut Watch, kind: EventType, name: &str) -> Vec<(EventType, String)> {
    let mut seen = Vec::new();
    let found = async {
        loop {
            let event = watch.next().await.unwrap();
            seen.push((event.r#type.as_known().unwrap(), event.name.clone()));
            if event.name == name && event.r#type == kind {
                break;
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(30), found).await;
    assert!(found.is_ok(), "no {kind:?} of {name} in {seen:?}");
    seen
}

#[tokio::test]
async fn tells_creation_writing_renaming_and_removal() {
    let dir = tempfile::tempdir().unwrap();
    let mut watch = watch(dir.path(), false);
    fs::write(dir.path().join("a"), "1").unwrap();
    until(&mut watch, EventType::Write, "a").await;
    fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
    let seen = until(&mut watch, EventType::Create, "b").await;
    assert_eq!(
        seen,
        [
            (EventType::Rename, "a".to_owned()),
            (EventType::Create, "b".to_owned())
        ]
    );
    fs::remove_file(dir.path().join("b")).unwrap();
    until(&mut watch, EventType::Remove, "b").await;
}

#[tokio::test]
async fn follows_directories_that_appear_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut watch = watch(dir.path(), true);
    fs::create_dir_all(dir.path().join("x/y/z")).unwrap();
    until(&mut watch, EventType::Create, "x/y/z").await;
    fs::write(dir.path().join("x/y/z/file"), "1").unwrap();
    until(&mut watch, EventType::Write, "x/y/z/file").await;

    // A directory that moves keeps being watched, under its new name.
    fs::rename(dir.path().join("x/y"), dir.path().join("moved")).unwrap();
    until(&mut watch, EventType::Create, "moved").await;
    fs::write(dir.path().join("moved/z/file"), "22").unwrap();
    until(&mut watch, EventType::Write, "moved/z/file").await;
}

#[tokio::test]
async fn a_flat_watch_does_not_look_below() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("below")).unwrap();
    let mut watch = watch(dir.path(), false);
    fs::write(dir.path().join("below/file"), "").unwrap();
    fs::write(dir.path().join("mark"), "").unwrap();
    let seen = until(&mut watch, EventType::Create, "mark").await;
    assert!(
        !seen.iter().any(|(_, name)| name.contains("file")),
        "{seen:?}"
    );
}

#[tokio::test]
async fn an_upload_looks_like_a_plain_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut watch = watch(dir.path(), false);
    for (replaces, expected) in [
        (
            false,
            vec![EventType::Create, EventType::Chmod, EventType::Write],
        ),
        (true, vec![EventType::Chmod, EventType::Write]),
    ] {
        let staged = crate::files::staging::Staged::name(replaces);
        fs::write(dir.path().join(&staged), "contents").unwrap();
        fs::rename(dir.path().join(&staged), dir.path().join("file")).unwrap();
        let seen = until(&mut watch, EventType::Write, "file").await;
        let expected: Vec<_> = expected
            .into_iter()
            .map(|kind| (kind, "file".to_owned()))
            .collect();
        assert_eq!(seen, expected);
    }
}

#[test]
fn refuses_what_is_not_a_directory() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let target = |path: &Path| Target {
        path: path.to_owned(),
        recursive: false,
        include_entry: false,
        allow_network_mounts: false,
    };
    assert!(matches!(
        WatchTree::open(target(file.path())),
        Err(WatchError::NotADirectory { .. })
    ));
    assert!(matches!(
        WatchTree::open(target(Path::new("/no/such/place"))),
        Err(WatchError::Open { .. })
    ));
}
