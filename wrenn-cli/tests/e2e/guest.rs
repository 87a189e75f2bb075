//! Sandboxes and their guests, through the library.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use tokio::io::AsyncReadExt;
use wrenn_core::guest::{Command, EntryKind, ProcessEvent, RpcCode, Signal};
use wrenn_core::sandbox::{Adopted, Keep, Sandbox, SandboxConfig};

use crate::stage::{self, Amount, minimal, until};

async fn shell(sandbox: &Sandbox, line: &str) -> String {
    let output = sandbox
        .exec(&Command::shell(line).user("root"))
        .await
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.shell_code(), 0, "{line}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn guests_in_a_row_leave_nothing() {
    stage::enter(|host| async move {
        for round in 0..Amount::Cycles.or(6) {
            let sandbox = minimal(&host).await;
            assert_eq!(
                shell(&sandbox, &format!("echo round {round}")).await,
                format!("round {round}")
            );
            sandbox.destroy().await.unwrap();
            let left = stage::leftovers(&host).await;
            assert!(left.is_empty(), "round {round}: {left:#?}");
        }
    });
}

#[test]
fn eight_at_once_are_eight_different_guests() {
    stage::enter(|host| async move {
        let sandboxes = join_all((0..8).map(|_| minimal(&host))).await;
        let identities = join_all(sandboxes.iter().map(|sandbox| {
            shell(
                sandbox,
                "hostname; cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | md5sum",
            )
        }))
        .await;
        for line in 0..3 {
            let different: BTreeSet<_> = identities
                .iter()
                .map(|text| text.lines().nth(line).unwrap())
                .collect();
            assert_eq!(different.len(), 8, "{identities:#?}");
        }
        for destroyed in join_all(sandboxes.into_iter().map(Sandbox::destroy)).await {
            destroyed.unwrap();
        }
    });
}

#[test]
fn dropping_a_sandbox_or_its_creation_gives_everything_back() {
    stage::enter(|host| async move {
        drop(minimal(&host).await);
        for milliseconds in [0, 20, 100, 500, 1500] {
            let creation = host.create(stage::small());
            if let Ok(created) =
                tokio::time::timeout(Duration::from_millis(milliseconds), creation).await
            {
                created.unwrap().destroy().await.unwrap();
            }
        }
        until("all is given back", || async {
            stage::leftovers(&host).await.is_empty()
        })
        .await;
    });
}

#[test]
fn dropped_sandbox_that_is_kept_goes_on() {
    stage::enter(|host| async move {
        let sandbox = host
            .create(SandboxConfig {
                keep: Keep::UntilDestroyed,
                ..stage::small()
            })
            .await
            .unwrap();
        let id = sandbox.id().clone();
        shell(&sandbox, "echo kept >/run/file").await;
        // As in a program that ends by an error.
        drop(sandbox);
        for _ in 0..3 {
            // An adoption that is dropped in the middle.
            let adoption = host.adopt(id.clone());
            if let Ok(adopted) = tokio::time::timeout(Duration::from_millis(5), adoption).await {
                drop(adopted.unwrap());
            }
        }
        let adopted = host.adopt(id.clone()).await.unwrap();
        let Adopted::Running(sandbox) = adopted else {
            panic!("{adopted:?}");
        };
        assert_eq!(shell(&sandbox, "cat /run/file").await, "kept");
        // A broken one keeps its files when it is dropped, too.
        drop(sandbox.fail("on purpose".to_owned()).await);
        let Ok(Adopted::Broken(remains)) = host.adopt(id.clone()).await else {
            panic!("it is gone");
        };
        assert_eq!(remains.reason(), "on purpose");
        remains.destroy().await.unwrap();
        assert!(stage::leftovers(&host).await.is_empty());
    });
}

#[test]
fn the_guest_is_told_who_and_when_it_is() {
    stage::enter(|host| async move {
        let sandbox = minimal(&host).await;
        assert_eq!(shell(&sandbox, "hostname").await, sandbox.id().as_str());
        let before = SystemTime::now();
        let seconds: u64 = shell(&sandbox, "date +%s").await.parse().unwrap();
        let guest = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let after = SystemTime::now();
        assert!(
            guest + Duration::from_secs(2) > before,
            "{guest:?} is before {before:?}"
        );
        assert!(
            guest < after + Duration::from_secs(2),
            "{guest:?} is after {after:?}"
        );
        assert!(
            shell(&sandbox, "cat /proc/1/cmdline")
                .await
                .contains("wrenn-envd")
        );
        sandbox.destroy().await.unwrap();
    });
}

#[test]
fn files_travel_whole_and_keep_their_old_self_until_then() {
    stage::enter(|host| async move {
        let sandbox = minimal(&host).await;
        let guest = sandbox.guest();
        let mut bytes = vec![0_u8; 8 << 20];
        rand::fill(&mut bytes[..]);
        guest
            .upload("/home/user/a file", None, Cursor::new(bytes.clone()))
            .await
            .unwrap();
        let entry = guest.stat("/home/user/a file").await.unwrap();
        assert_eq!(
            (entry.kind, entry.size, entry.owner.as_str()),
            (EntryKind::File, 8 << 20, "user")
        );
        let mut copy = Vec::new();
        assert_eq!(
            guest
                .download("/home/user/a file", &mut copy)
                .await
                .unwrap(),
            8 << 20
        );
        assert!(copy == bytes, "what came back is not what was sent");

        // A source that breaks off half-way must not harm what is there.
        let broken = Cursor::new(vec![1_u8; 1 << 20]).chain(Broken);
        guest
            .upload("/home/user/a file", None, broken)
            .await
            .unwrap_err();
        assert!(guest.read_file("/home/user/a file").await.unwrap() == bytes);

        guest
            .rename("/home/user/a file", "/home/user/b")
            .await
            .unwrap();
        let missing = guest.stat("/home/user/a file").await.unwrap_err();
        assert_eq!(missing.code(), Some(RpcCode::NotFound));
        guest.make_dir("/home/user/d/e").await.unwrap();
        let names: Vec<_> = guest
            .list_dir("/home/user", 1)
            .await
            .unwrap()
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        assert!(
            names.contains(&"b".to_owned()) && names.contains(&"d".to_owned()),
            "{names:?}"
        );
        guest.remove("/home/user/d").await.unwrap();
        assert!(guest.stat("/home/user/d").await.is_err());
        sandbox.destroy().await.unwrap();
    });
}

/// A source that fails at once.
struct Broken;

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::Error::other("the source broke")))
    }
}

#[test]
fn a_command_can_be_left_found_fed_and_ended() {
    stage::enter(|host| async move {
        let sandbox = minimal(&host).await;
        let guest = sandbox.guest();
        let process = guest
            .start(&Command::new("cat").with_stdin().tag("echo"))
            .await
            .unwrap();
        let pid = process.pid();
        let mut input = process.input();
        drop(process);
        let found = guest.processes().await.unwrap();
        assert!(
            found
                .iter()
                .any(|p| p.pid == pid && p.tag.as_deref() == Some("echo")),
            "{found:?}"
        );

        let mut again = guest.connect(pid).await.unwrap();
        input.write("hello".into()).await.unwrap();
        assert_eq!(
            again.next().await.unwrap(),
            ProcessEvent::Stdout("hello".into())
        );
        input.close().await.unwrap();
        let ProcessEvent::Exit(status) = again.next().await.unwrap() else {
            panic!("no exit")
        };
        assert_eq!(status.shell_code(), 0);

        let mut sleeper = guest
            .start(&Command::new("sleep").args(["1000"]))
            .await
            .unwrap();
        guest
            .signal(sleeper.pid(), Signal::SIGNAL_SIGTERM)
            .await
            .unwrap();
        let ProcessEvent::Exit(status) = sleeper.next().await.unwrap() else {
            panic!("no exit")
        };
        assert_eq!(status.shell_code(), 143);
        sandbox.destroy().await.unwrap();
    });
}

#[test]
fn a_daemon_that_dies_comes_back_and_still_wants_its_token() {
    stage::enter(|host| async move {
        let sandbox = minimal(&host).await;
        let guest = sandbox.guest();
        let process = guest
            .start(&Command::shell("sleep 1000").user("root"))
            .await
            .unwrap();
        // PID 1 is init; the daemon is the other one of that name.
        let kill = "for p in $(pidof wrenn-envd); do [ $p = 1 ] || kill -9 $p; done";
        let killed = guest.output(&Command::shell(kill).user("root")).await;
        assert!(
            killed.is_err(),
            "the daemon outlived its own death: {killed:?}"
        );
        drop(process);
        guest.wait_healthy(stage::PATIENCE).await.unwrap();
        assert_eq!(shell(&sandbox, "echo back").await, "back");
        let stranger = wrenn_core::guest::GuestClient::new(guest.address(), None).unwrap();
        let refused = stranger.processes().await.unwrap_err();
        assert_eq!(refused.code(), Some(RpcCode::Unauthenticated));
        sandbox.destroy().await.unwrap();
    });
}

#[test]
fn orphans_are_reaped() {
    stage::enter(|host| async move {
        let sandbox = minimal(&host).await;
        shell(
            &sandbox,
            "for i in 1 2 3 4 5 6 7 8; do (sleep 0 &) ; done; exit 0",
        )
        .await;
        until("no zombie is left", || async {
            shell(
                &sandbox,
                "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l",
            )
            .await
                == "0"
        })
        .await;
        sandbox.destroy().await.unwrap();
    });
}
