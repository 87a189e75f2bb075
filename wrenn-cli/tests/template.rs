//! `wrenn template` as people call it, in a root directory of its own. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        let kernel = scene.path("root/kernels/k1");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(kernel.join("kernel.json"), "{}").unwrap();
        fs::write(scene.path("envd"), "the daemon").unwrap();
        fs::set_permissions(scene.path("envd"), fs::Permissions::from_mode(0o755)).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `wrenn template` with these words.
    fn template(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_wrenn"))
            .arg("template")
            .args(words)
            .arg("--root")
            .arg(self.path("root"))
            .output()
            .unwrap()
    }

    /// Builds a template that holds one file with these contents.
    fn build(&self, name: &str, contents: &str, more: &[&str]) -> Output {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, "etc/contents", contents.as_bytes())
            .unwrap();
        let source = self.path("root.tar");
        fs::write(&source, archive.into_inner().unwrap()).unwrap();
        let (from, envd) = (source.to_str().unwrap(), self.path("envd"));
        let envd = envd.to_str().unwrap();
        let words = [
            "build",
            name,
            "--from",
            from,
            "--envd",
            envd,
            "--size-mib",
            "64",
        ];
        self.template(&[&words[..], more].concat())
    }

    fn list(&self) -> Vec<Value> {
        let output = self.template(&["list", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a sandbox that was made from the image leaves in its directory.
    fn sandbox_of(&self, image: &str) {
        let sandbox = self.path("root/sandboxes/sb0000000000000000000a");
        fs::create_dir_all(&sandbox).unwrap();
        fs::write(sandbox.join(format!("image-{image}")), "").unwrap();
    }

    fn images(&self, name: &str) -> usize {
        let directory = self.path("root/templates").join(name);
        let entries = fs::read_dir(directory).unwrap();
        entries
            .filter(|entry| {
                let path = entry.as_ref().unwrap().path();
                path.extension().is_some_and(|ending| ending == "ext4")
            })
            .count()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn build_list_and_delete() {
    let scene = Scene::new();
    assert!(scene.list().is_empty());
    let options = [
        "--env",
        "A=b=c",
        "--start",
        "sleep 9",
        "--default-user",
        "root",
        "--kernel",
        "k1",
        "--json",
    ];
    let built = scene.build("tiny", "1", &options);
    assert!(built.status.success(), "{built:?}");
    assert!(built.stderr.is_empty(), "{built:?}");
    let built: Value = serde_json::from_slice(&built.stdout).unwrap();
    assert_eq!(built["env"]["A"], "b=c");

    let listed = scene.list();
    assert_eq!(listed.len(), 1);
    for (key, value) in [
        ("name", "tiny"),
        ("kernel", "k1"),
        ("start_command", "sleep 9"),
        ("default_user", "root"),
    ] {
        assert_eq!(listed[0][key], value);
    }
    assert_eq!(listed[0]["rootfs_sha256"], built["rootfs_sha256"]);
    let table = text(&scene.template(&["list"]).stdout);
    let lines: Vec<_> = table.lines().collect();
    let [head, row] = lines[..] else {
        panic!("{table}")
    };
    assert!(row.starts_with("tiny "), "{table}");
    assert_eq!(head.find("USER"), row.find("root"), "{table}");

    assert!(scene.template(&["delete", "tiny"]).status.success());
    assert!(scene.list().is_empty());
    let again = scene.template(&["delete", "tiny"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        text(&again.stderr).contains("there is no template 'tiny'"),
        "{again:?}"
    );
}

#[test]
fn a_template_in_use_is_not_deleted_and_keeps_its_image() {
    let scene = Scene::new();
    assert!(scene.build("tiny", "1", &[]).status.success());
    let first = scene.list()[0]["rootfs_sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    scene.sandbox_of(&first);
    let refused = scene.template(&["delete", "tiny"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = text(&refused.stderr);
    assert!(
        message.contains("in use by sb0000000000000000000a"),
        "{message}"
    );

    // A new version: the sandbox keeps the old image, and so does the template.
    assert!(scene.build("tiny", "2", &[]).status.success());
    assert_ne!(scene.list()[0]["rootfs_sha256"], first.as_str());
    assert_eq!(scene.images("tiny"), 2);
    assert_eq!(scene.template(&["delete", "tiny"]).status.code(), Some(1));

    // The sandbox is gone: the next version takes all older images along.
    fs::remove_dir_all(scene.path("root/sandboxes")).unwrap();
    assert!(scene.build("tiny", "3", &[]).status.success());
    assert_eq!(scene.images("tiny"), 1);
    assert!(scene.template(&["delete", "tiny"]).status.success());
}

#[test]
fn mistakes_of_the_caller_exit_with_2_and_others_with_1() {
    let scene = Scene::new();
    for words in [
        &["build"][..],
        &["build", "x"],
        &["build", "x", "--from", "y", "--env", "novalue"],
        &["build", "x", "--from", "y", "--size-mib", "0"],
        &["delete"],
        &["delete", "../x"],
        &["nothing"],
    ] {
        assert_eq!(scene.template(words).status.code(), Some(2), "{words:?}");
    }
    assert_eq!(scene.build("../x", "1", &[]).status.code(), Some(2));
    let failed = scene.build("x", "1", &["--kernel", "k9"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains("there are: k1"), "{failed:?}");
    for words in [
        &["--help"][..],
        &["build", "--help"],
        &["list", "--help"],
        &["delete", "--help"],
    ] {
        let help = scene.template(words);
        assert!(
            help.status.success() && text(&help.stdout).contains("Examples:"),
            "{words:?}"
        );
    }
}
