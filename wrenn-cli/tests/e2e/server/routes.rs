//! Every route once, with a real agent and a real guest.

use std::time::Duration;

use wrenn_sdk::api::sandbox::UpdateSandbox;
use wrenn_sdk::api::status::Status;
use wrenn_sdk::api::stream::TerminalSize;
use wrenn_sdk::api::template::TemplateKind;
use wrenn_sdk::{ListOptions, ProcessEvent, Signal};

use super::fixture::{small, with_server};
use crate::stage::MINIMAL;

#[test]
fn sandbox_lives_through_every_lifecycle_route() {
    with_server(|up| async move {
        let client = up.client();
        assert_eq!(client.server_info().await.unwrap().mode, "local");
        let templates = client.templates();
        let image = templates.get(MINIMAL).await.unwrap();
        assert_eq!(image.kind, TemplateKind::Image);

        let options = small()
            .name("web")
            .env("GREETING", "hello")
            .metadata("of", "test")
            .idle_timeout(Duration::from_secs(900));
        let mut sandbox = client.sandboxes().create(options).await.unwrap();
        let listed = client
            .sandboxes()
            .list(ListOptions::new().metadata("of", "test"));
        assert_eq!(listed.all().await.unwrap().len(), 1);
        let same = client.sandboxes().get("web").await.unwrap();
        assert_eq!(same.id(), sandbox.id());
        let ran = sandbox.shell("echo $GREETING; uname -s").await.unwrap();
        assert_eq!(ran.stdout_text(), "hello\nLinux\n");
        let change = UpdateSandbox {
            name: Some("db".to_owned()),
            timeout_sec: Some(600),
            ..UpdateSandbox::default()
        };
        assert_eq!(sandbox.update(&change).await.unwrap().timeout_sec, 600);
        sandbox.ping().await.unwrap();
        let metrics = sandbox.metrics().await.unwrap();
        assert!(
            metrics[0].guest_memory_total_bytes > 64 << 20,
            "{metrics:?}"
        );
        let log = sandbox.logs().from_start().await.unwrap();
        assert!(log.len() < 1 << 20);

        sandbox.shell("echo kept > /tmp/state").await.unwrap();
        sandbox.pause().await.unwrap();
        let refused = sandbox.shell("true").await.unwrap_err();
        assert!(refused.to_string().contains("resume it first"), "{refused}");
        sandbox.resume().await.unwrap();
        let kept = sandbox.files().read_text("/tmp/state").await.unwrap();
        assert_eq!(kept, "kept\n");

        let children = sandbox.fork(2).await.unwrap();
        for child in children {
            let child = child.unwrap();
            assert_eq!(
                child.files().read_text("/tmp/state").await.unwrap(),
                "kept\n"
            );
            child.destroy().await.unwrap();
        }
        let snapshot = sandbox.snapshot("warm").await.unwrap();
        assert_eq!(
            client.snapshots().list().all().await.unwrap(),
            [snapshot.clone()]
        );
        let mut spawned = client.sandboxes().create("warm").await.unwrap();
        let text = spawned.files().read_text("/tmp/state").await.unwrap();
        assert_eq!(text, "kept\n");
        let users = client.snapshots().delete("warm").await.unwrap();
        assert!(users.contains(&spawned.id().to_string()), "{users:?}");
        spawned.destroy().await.unwrap();
        assert_eq!(spawned.refresh().await.unwrap().status, Status::Stopped);
        sandbox.destroy().await.unwrap();
    });
}

#[test]
fn commands_stream_and_take_input_and_signals() {
    with_server(|up| async move {
        let sandbox = up.create().await;
        let mut process = sandbox
            .spawn("sh", ["-c", "cat; echo done >&2; exit 5"])
            .stdin()
            .await
            .unwrap();
        process.write_stdin("one ").await.unwrap();
        process.write_stdin("two").await.unwrap();
        process.close_stdin().await.unwrap();
        let (mut stdout, mut stderr, mut code) = (Vec::new(), Vec::new(), None);
        while let Some(event) = process.next().await.unwrap() {
            match event {
                ProcessEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ProcessEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ProcessEvent::Exit(exit) => code = Some(exit.code),
                _ => {}
            }
        }
        assert_eq!(
            (stdout.as_slice(), stderr.as_slice()),
            (&b"one two"[..], &b"done\n"[..])
        );
        assert_eq!(code, Some(5));

        let size = TerminalSize { cols: 90, rows: 20 };
        let mut terminal = sandbox
            .spawn("sh", ["-c", "stty size"])
            .tty(size)
            .await
            .unwrap();
        let mut printed = Vec::new();
        while let Some(event) = terminal.next().await.unwrap() {
            if let ProcessEvent::Tty(bytes) = event {
                printed.extend_from_slice(&bytes);
            }
        }
        assert_eq!(String::from_utf8_lossy(&printed).trim(), "20 90");

        let background = sandbox
            .exec("sleep", ["1000"])
            .background("nap")
            .await
            .unwrap();
        let listed = sandbox.processes().await.unwrap();
        assert_eq!(
            (listed[0].pid, listed[0].tag.as_str()),
            (background.pid, "nap")
        );
        sandbox.signal("nap", Signal::KILL).await.unwrap();
        let missing = sandbox
            .exec("no-such-program", wrenn_sdk::NO_ARGS)
            .await
            .unwrap();
        assert_eq!(missing.exit_code, 127);
        sandbox.destroy().await.unwrap();
    });
}

#[test]
fn files_and_directories_go_both_ways() {
    with_server(|up| async move {
        let sandbox = up.create().await;
        let files = sandbox.files();
        let local = tempfile::tempdir().unwrap();
        std::fs::create_dir(local.path().join("d")).unwrap();
        std::fs::write(local.path().join("d/f"), "content").unwrap();
        std::os::unix::fs::symlink("f", local.path().join("d/link")).unwrap();

        let mut watcher = files.watch("/tmp").await.unwrap();
        files.write("/tmp/small", "small").await.unwrap();
        let change = watcher.next().await.unwrap();
        assert!(change.name.contains("small"), "{change:?}");
        watcher.close().await;
        assert_eq!(files.read_text("/tmp/small").await.unwrap(), "small");

        let large = local.path().join("large");
        std::fs::write(&large, vec![7; 3 << 20]).unwrap();
        files.upload(&large, "/tmp/large").await.unwrap();
        assert_eq!(files.stat("/tmp/large").await.unwrap().size, 3 << 20);
        let back = local.path().join("back");
        files.download("/tmp/large", &back).await.unwrap();
        assert_eq!(std::fs::read(&back).unwrap(), vec![7; 3 << 20]);

        files
            .upload_dir(local.path().join("d"), "/tmp/d")
            .await
            .unwrap();
        let ran = sandbox
            .shell("cat /tmp/d/f; readlink /tmp/d/link")
            .await
            .unwrap();
        assert_eq!(ran.stdout_text(), "contentf\n");
        files
            .download_dir("/tmp/d", local.path().join("e"))
            .await
            .unwrap();
        assert_eq!(
            std::fs::read_to_string(local.path().join("e/link")).unwrap(),
            "content"
        );

        files.make_dir("/tmp/m").await.unwrap();
        files.rename("/tmp/small", "/tmp/m/moved").await.unwrap();
        let names: Vec<String> = files
            .list("/tmp/m")
            .await
            .unwrap()
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        assert_eq!(names, ["moved"]);
        files.remove("/tmp/m").await.unwrap();
        assert!(!files.exists("/tmp/m").await.unwrap());
        sandbox.destroy().await.unwrap();
    });
}
