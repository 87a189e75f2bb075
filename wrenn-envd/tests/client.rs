//! The engines' client of this daemon: what no other test asks by it.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::{TestDaemon, own_user};
use futures::{StreamExt as _, TryStreamExt as _};
use wrenn_core::guest::{AccessToken, Change, ChangeKind, Command, GuestClient, RpcCode};

const TOKEN: &str = "secret";

fn client(daemon: &TestDaemon) -> GuestClient {
    GuestClient::new(daemon.address, Some(AccessToken::new(TOKEN))).unwrap()
}

/// Somebody else where this test may become somebody else, and ourselves elsewhere.
fn another() -> String {
    if rustix::process::geteuid().is_root() {
        "nobody".to_owned()
    } else {
        own_user()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_those_of_the_user_that_the_client_acts_as() {
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory.path(), open).unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();

    let user = another();
    let guest = client(&daemon).as_user(&user).unwrap();
    guest.write_file(&path("file"), "hello").await.unwrap();
    guest.make_dir(&path("directory")).await.unwrap();
    for name in ["file", "directory"] {
        assert_eq!(guest.stat(&path(name)).await.unwrap().owner, user, "{name}");
    }
    assert_eq!(guest.read_file(&path("file")).await.unwrap(), b"hello");
    let unknown = client(&daemon).as_user("no such user").unwrap();
    assert!(unknown.stat("/").await.is_err());
    assert!(client(&daemon).as_user("a:b").is_err());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_stream_both_ways_and_an_error_changes_nothing() {
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file").to_str().unwrap().to_owned();
    let guest = client(&daemon);
    let chunks = futures::stream::iter(["first ", "second"]).map(|text| Ok(text.into()));
    guest.write_stream(&path, None, chunks).await.unwrap();
    let read: Vec<bytes::Bytes> = guest
        .read_stream(&path)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(read.concat(), b"first second");

    let broken = [Ok("third".into()), Err(std::io::Error::other("broken"))];
    let broken = futures::stream::iter(broken);
    guest.write_stream(&path, None, broken).await.unwrap_err();
    assert_eq!(guest.read_file(&path).await.unwrap(), b"first second");
    let missing = guest.read_stream("/no/such").await.err().unwrap();
    assert_eq!(missing.code(), Some(RpcCode::NotFound));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_begins_before_it_is_there() {
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let mut watch = client(&daemon).watch_dir(path, false).await.unwrap();
    std::fs::create_dir(directory.path().join("new")).unwrap();
    let change = watch.next().await.unwrap();
    let wanted = Change {
        name: "new".to_owned(),
        kind: ChangeKind::Created,
    };
    assert_eq!(change, wanted);
    let missing = client(&daemon).watch_dir("/no/such", false).await;
    assert_eq!(missing.unwrap_err().code(), Some(RpcCode::NotFound));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_joins_a_terminal_writes_to_it() {
    use wrenn_core::guest::{ProcessEvent, PtySize};
    let daemon = TestDaemon::start_with(TOKEN).await;
    let guest = client(&daemon);
    let size = PtySize { cols: 80, rows: 24 };
    let shell = Command::new("sh").pty(size).with_stdin();
    let first = guest.start(&shell).await.unwrap();
    let mut joined = guest.connect_terminal(first.pid()).await.unwrap();
    drop(first);
    let mut input = joined.input();
    input.write("exit $((40 + 2))\n".into()).await.unwrap();
    loop {
        match joined.next().await.unwrap() {
            ProcessEvent::Pty(_) => {}
            ProcessEvent::Exit(status) => {
                assert_eq!(status.shell_code(), 42);
                break;
            }
            other => panic!("{other:?} of a terminal"),
        }
    }
    daemon.stop().await;
}
