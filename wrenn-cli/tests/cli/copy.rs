//! `wrenn sandbox cp`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::wrenn::{Wrenn, run_with_input};

#[tokio::test(flavor = "multi_thread")]
async fn files_go_both_ways_with_modes() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    fs::write(wrenn.path("script"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(wrenn.path("script"), fs::Permissions::from_mode(0o751)).unwrap();
    wrenn.shell("mkdir there").await;
    for (to, path) in [
        ("web:", "script"),
        ("web:there", "there/script"),
        ("web:there/", "there/script"),
        ("web:new", "new"),
        ("web:deep/er/", "deep/er/script"),
    ] {
        wrenn.ok(&["sandbox", "cp", "script", to]).await;
        let ran = wrenn
            .shell(&format!("./{path}; stat -c %a {path}; rm {path}"))
            .await;
        assert_eq!(ran, "ran\n751\n", "{to}");
    }
    wrenn.shell("echo back > there/f; chmod 640 there/f").await;
    fs::create_dir(wrenn.path("here")).unwrap();
    for (to, path) in [("here", "here/f"), ("copy", "copy")] {
        wrenn.ok(&["sandbox", "cp", "web:there/f", to]).await;
        assert_eq!(fs::read(wrenn.path(path)).unwrap(), b"back\n");
        let mode = fs::metadata(wrenn.path(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_go_both_ways() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    fs::create_dir_all(wrenn.path("src/a")).unwrap();
    fs::write(wrenn.path("src/a/f"), "f").unwrap();
    symlink("a/f", wrenn.path("src/l")).unwrap();
    wrenn.shell("mkdir there").await;
    for (from, to, path) in [
        ("src", "web:new", "new"),
        ("src", "web:there", "there/src"),
        ("src/", "web:", "src"),
        ("src/.", "web:there", "there"),
    ] {
        wrenn.ok(&["sandbox", "cp", from, to]).await;
        let found = wrenn
            .shell(&format!("cat {path}/a/f; readlink {path}/l"))
            .await;
        assert_eq!(found, "fa/f\n", "{from} {to}");
    }
    fs::create_dir(wrenn.path("here")).unwrap();
    for (to, path) in [("here", "here/new"), ("copy", "copy")] {
        wrenn.ok(&["sandbox", "cp", "web:new", to]).await;
        assert_eq!(fs::read(wrenn.path(path).join("a/f")).unwrap(), b"f");
        assert!(wrenn.path(path).join("l").is_symlink());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_streams_are_copied() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let large = vec![b'x'; 5_000_000];
    let command = wrenn.command(&["sandbox", "cp", "-", "web:large"]);
    let ran = run_with_input(command, &large).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let out = wrenn.ok(&["sandbox", "cp", "web:large", "-"]).await;
    assert!(out.as_bytes() == large);
    let nameless = wrenn.run(&["sandbox", "cp", "-", "web:"]).await;
    assert_eq!(nameless.code, Some(2), "{nameless:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn outward_links_are_kept_or_left_out() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    wrenn
        .shell("mkdir d && cd d && ln -s /etc 'out\u{1b}[2J' && ln -s ../.. up && echo f > f")
        .await;
    let ran = wrenn.run(&["sandbox", "cp", "web:d", "kept"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let said = "symbolic links that lead out of the directory: 2, the first is";
    assert!(ran.stderr.contains(said), "{ran:?}");
    assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
    let link = fs::read_link(wrenn.path("kept/up")).unwrap();
    assert_eq!(link.to_str(), Some("../.."));

    let words = ["sandbox", "cp", "--safe-links", "web:d", "safe"];
    let ran = wrenn.run(&words).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("left out up: "), "{ran:?}");
    assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
    let names = fs::read_dir(wrenn.path("safe")).unwrap();
    assert_eq!(names.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_explained() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    for (from, to, code, said) in [
        ("missing", "web:", 1, "cannot read missing"),
        ("web:missing", "here", 1, "missing"),
        ("none:file", "here", 1, "there is no sandbox 'none'"),
        ("web:a", "web:b", 2, "copy in two steps"),
        ("a", "b", 2, "SANDBOX:PATH"),
        (
            "web:/etc/passwd",
            "/no/such/directory/f",
            1,
            "/no/such/directory",
        ),
    ] {
        let ran = wrenn.run(&["sandbox", "cp", from, to]).await;
        assert_eq!(ran.code, Some(code), "{from} {to}: {ran:?}");
        assert!(ran.stderr.contains(said), "{from} {to}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    }
}
