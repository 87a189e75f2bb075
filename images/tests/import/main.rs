//! Imports whole templates from sources that the tests write, and looks into the images with
//! debugfs. Needs root, since the files of a template belong to several users.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod images;
mod scene;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use images::{Archive, docker_save, gzip, layers, oci_layout, packed, zstd};
use scene::Scene;
use wrenn_images::import::{
    ArchiveError, ImageError, ImportError, LimitError, Limits, Phase, SourceKind,
};

/// Checks an image of the two layers of [`layers`], in every detail.
fn check_layers(scene: &Scene, name: &str) {
    let image = scene.image(name);
    assert_eq!(image.read("/srv/kept"), "below");
    assert_eq!(image.read("/srv/changed"), "above");
    assert!(!image.exists("/srv/gone"));
    assert!(!image.exists("/srv/.wh.gone"));
    assert_eq!(image.read("/opaque/new"), "above");
    assert_eq!(image.read("/opaque/deep/new"), "above");
    assert!(!image.exists("/opaque/old"));
    assert!(!image.exists("/opaque/deep/old"));
    assert!(!image.exists("/tree"));
    assert_eq!(image.read("/usr/bin/through-a-link"), "above");
    assert_eq!(
        image.read(&format!("/srv/{}end", "long-name/".repeat(20))),
        "far"
    );
    assert!(!image.exists("/dev/null"));

    let su = image.stat("/usr/bin/su");
    assert!(
        su.contains("Mode:  04755") && su.contains("Links: 2"),
        "{su}"
    );
    assert_eq!(image.read("/usr/bin/su-too"), "set-user-id");
    let changed = image.stat("/srv/changed");
    assert!(
        changed.contains("Mode:  0600") && changed.contains("User:    42"),
        "{changed}"
    );
    let noted = image.stat("/srv/noted");
    for attribute in ["user.note", "security.capability"] {
        assert!(noted.contains(attribute), "{noted}");
    }
    assert!(image.stat("/srv/kept").contains("mtime: 0x5f5e1000"));

    check_guest_parts(scene, name, 1000);
    assert!(
        image
            .read("/etc/passwd")
            .ends_with("\nuser:x:1000:1000:user:/home/user:/bin/sh\n")
    );
    assert!(image.read("/etc/shadow").contains("\nuser:*:"));

    let manifest = scene.manifest(name);
    assert_eq!(manifest["default_user"], "app");
    assert_eq!(manifest["env"]["MODE"], "image");
    assert_eq!(manifest["start_command"], "/usr/bin/serve --port '80 80'");
    assert_eq!(manifest["working_directory"], "/srv");
    assert_eq!(manifest["kernel"], "k1");
}

/// Checks what every guest needs.
fn check_guest_parts(scene: &Scene, name: &str, user: u32) {
    let image = scene.image(name);
    image.check();
    assert_eq!(image.read("/usr/local/bin/wrenn-envd"), "the daemon");
    let daemon = image.stat("/usr/local/bin/wrenn-envd");
    assert!(
        daemon.contains("Mode:  0755") && daemon.contains("User:     0"),
        "{daemon}"
    );
    for directory in ["/proc", "/sys", "/dev", "/run"] {
        assert!(
            image.stat(directory).contains("Type: directory"),
            "{directory}"
        );
    }
    assert!(image.stat("/tmp").contains("Mode:  01777"));
    let home = image.stat("/home/user");
    let owner = format!("User:  {user}   Group:  {user}");
    assert!(home.contains(&owner), "{home}");

    let manifest = scene.manifest(name);
    let sha256 = manifest["rootfs_sha256"].as_str().unwrap();
    assert_eq!(manifest["rootfs"], format!("{sha256}.ext4"));
    let metadata = image.path.metadata().unwrap();
    assert_eq!(metadata.len(), manifest["size_mib"].as_u64().unwrap() << 20);
    assert_eq!(images::sha256(&fs::read(&image.path).unwrap()), sha256);
    assert_eq!(metadata.permissions().mode() & 0o777, 0o444);
}

#[test]
fn docker_save_archive() {
    let scene = Scene::new();
    for (name, archive) in [("plain", docker_save()), ("packed", gzip(&docker_save()))] {
        let source = scene.source("image.tar", &archive);
        let imported = scene.import(name, &source).unwrap();
        assert_eq!(imported.kind, SourceKind::ImageArchive);
        check_layers(&scene, name);
    }
    scene.assert_nothing_left();
}

#[test]
fn oci_layout_as_directory_and_as_archive() {
    let scene = Scene::new();
    for (name, pack) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd)] {
        let layout = scene.path(name);
        oci_layout(&layout, pack);
        let imported = scene.import(name, &layout).unwrap();
        assert_eq!(imported.kind, SourceKind::ImageDirectory);
        check_layers(&scene, name);
    }
    let source = scene.source("layout.tar", &packed(&scene.path("gzip")));
    let imported = scene.import("archive", &source).unwrap();
    assert_eq!(imported.kind, SourceKind::ImageArchive);
    check_layers(&scene, "archive");
    scene.assert_nothing_left();
}

#[test]
fn root_file_system_archive() {
    let scene = Scene::new();
    let archive = Archive::new()
        .directory("./")
        .file("./etc/hostname", b"x")
        .file("./etc/.wh.kept", b"a name like others")
        .file("./odd \"name\"\nrm etc", b"odd")
        .file_with("./bin/bash", b"#!", 0o755, 0)
        .directory("./etc/sudoers.d")
        .finish();
    for (name, archive) in [
        ("plain", archive.clone()),
        ("gzip", gzip(&archive)),
        ("zstd", zstd(&archive)),
    ] {
        let source = scene.source("root.tar", &archive);
        let mut options = scene.options(name, &source);
        options.env.insert("A".into(), "b".into());
        options.start_command = Some("sleep 1".into());
        options.default_user = Some("root".into());
        let imported = scene.import_with(&options).unwrap();
        assert_eq!(imported.kind, SourceKind::Tarball);
        check_guest_parts(&scene, name, 1000);
        let image = scene.image(name);
        assert_eq!(image.read("/etc/.wh.kept"), "a name like others");
        assert_eq!(image.read("/etc/hostname"), "x");
        assert!(
            image
                .read("/etc/passwd")
                .starts_with("root:x:0:0:root:/root:/bin/bash\nuser:")
        );
        assert!(image.stat("/etc/sudoers.d/user").contains("Mode:  0440"));
        let manifest = scene.manifest(name);
        assert_eq!(manifest["default_user"], "root");
        assert_eq!(manifest["env"]["A"], "b");
        assert_eq!(manifest["start_command"], "sleep 1");
    }
}

#[test]
fn ext4_image_is_taken_and_grown() {
    let scene = Scene::new();
    let source = scene.ext4_source(32);
    let imported = scene.import("same", &source).unwrap();
    assert_eq!(imported.kind, SourceKind::Ext4);
    assert_eq!(imported.description.size_mib, 32);
    check_guest_parts(&scene, "same", 1001);
    assert_eq!(scene.image("same").read("/etc/hello"), "world");
    assert!(
        scene
            .image("same")
            .read("/etc/passwd")
            .contains("\nuser:x:1001:1001:")
    );

    let mut options = scene.options("grown", &source);
    options.size_mib = Some(200);
    scene.import_with(&options).unwrap();
    check_guest_parts(&scene, "grown", 1001);
    assert!(scene.image("grown").free_bytes() > 100 << 20);

    options.size_mib = Some(16);
    let error = scene.import_with(&options).unwrap_err();
    assert!(
        matches!(error, ImportError::TooSmall { needed_mib: 32, .. }),
        "{error:?}"
    );

    let mut damaged = fs::read(&source).unwrap();
    damaged[(1024 + 4)..(1024 + 40)].fill(0xff);
    let source = scene.source("damaged.ext4", &damaged);
    let error = scene.import("damaged", &source).unwrap_err();
    assert!(matches!(error, ImportError::Unsound { .. }), "{error:?}");
    scene.assert_nothing_left();
}

#[test]
fn a_size_is_chosen_or_kept_to() {
    let scene = Scene::new();
    let archive = Archive::new().file("big", &vec![7; 30 << 20]).finish();
    let source = scene.source("root.tar", &archive);
    let mut options = scene.options("sized", &source);
    options.size_mib = Some(20);
    let ImportError::TooSmall { needed_mib, .. } = scene.import_with(&options).unwrap_err() else {
        panic!("20 MiB were enough for 30");
    };
    options.size_mib = Some(needed_mib);
    scene.import_with(&options).unwrap();
    assert_eq!(scene.manifest("sized")["size_mib"], needed_mib);

    options.size_mib = None;
    scene.import_with(&options).unwrap();
    assert_eq!(
        scene.manifest("sized")["size_mib"].as_u64().unwrap() % 64,
        0
    );
    assert!(scene.image("sized").free_bytes() > 900 << 20);
    let image = scene.image("sized").path.metadata().unwrap();
    assert!(image.blocks() * 512 < 80 << 20, "the image is not sparse");
}

#[test]
fn an_image_is_never_changed_and_the_manifest_changes_in_one_step() {
    let scene = Scene::new();
    let source = scene.source("root.tar", &Archive::new().file("version", b"1").finish());
    let first = scene.import("tiny", &source).unwrap();
    let before = fs::read(&first.rootfs).unwrap();
    let open = fs::File::open(&first.rootfs).unwrap();

    let source = scene.source("root.tar", &Archive::new().file("version", b"2").finish());
    let second = scene.import("tiny", &source).unwrap();
    assert_ne!(first.rootfs, second.rootfs);
    assert_eq!(scene.image("tiny").read("/version"), "2");
    assert!(
        fs::read(&first.rootfs).unwrap() == before,
        "the first image changed"
    );
    assert_eq!(open.metadata().unwrap().nlink(), 1);
}

#[test]
fn what_fails_leaves_nothing_and_the_old_template_as_it_was() {
    let scene = Scene::new();
    let source = scene.source("root.tar", &Archive::new().file("version", b"1").finish());
    scene.import("tiny", &source).unwrap();
    let before = scene.manifest("tiny");

    let broken = Archive::new().file("version", &[b'2'; 3000]).finish();
    let source = scene.source("root.tar", &broken[..2000]);
    let error = scene.import("tiny", &source).unwrap_err();
    assert!(
        matches!(
            &error,
            ImportError::Archive {
                source: ArchiveError::Truncated,
                ..
            }
        ),
        "{error:?}"
    );
    let error = scene.import("fresh", &source).unwrap_err();
    assert!(error.to_string().contains("root.tar"), "{error}");
    assert_eq!(scene.manifest("tiny"), before);
    assert!(!scene.root().join("templates/fresh").exists());
    scene.assert_nothing_left();
}

#[test]
fn images_that_are_damaged_or_for_others_are_refused() {
    let scene = Scene::new();
    let layout = scene.path("layout");
    let refused = |name: &str| match scene.import(name, &layout).unwrap_err() {
        ImportError::Image { source, .. } => source,
        other => panic!("{other:?}"),
    };
    let blob = |contents: &[u8]| layout.join("blobs/sha256").join(images::sha256(contents));
    let [below, above] = layers();

    oci_layout(&layout, gzip);
    let mut flipped = below.clone();
    // In the data of a file: the archive is still one.
    let at = flipped
        .windows(5)
        .rposition(|bytes| bytes == b"below")
        .unwrap();
    flipped[at] ^= 1;
    fs::write(blob(&below), &flipped).unwrap();
    assert!(matches!(refused("flipped"), ImageError::Corrupt { .. }));
    fs::write(blob(&below), [&below[..], b"more"].concat()).unwrap();
    let message = refused("longer").to_string();
    assert!(
        message.contains(&format!("should have {} bytes", below.len())),
        "{message}"
    );
    fs::remove_file(blob(&below)).unwrap();
    assert!(matches!(refused("missing"), ImageError::Missing { .. }));

    oci_layout(&layout, gzip);
    let config = images::config(&[below, above], "amd64");
    fs::write(blob(&config), vec![b' '; config.len()]).unwrap();
    assert!(matches!(refused("config"), ImageError::Corrupt { .. }));

    let index = fs::read_to_string(layout.join("index.json")).unwrap();
    fs::write(
        layout.join("index.json"),
        index.replace("sha256:", "sha512:"),
    )
    .unwrap();
    scene.import("digest", &layout).unwrap_err();
    fs::write(
        layout.join("index.json"),
        r#"{"schemaVersion":2,"manifests":[]}"#,
    )
    .unwrap();
    assert!(matches!(refused("empty"), ImageError::Empty));
    fs::write(
        layout.join("index.json"),
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "digest":"sha256:{}","size":1,"platform":{{"os":"linux","architecture":"arm64"}}}}]}}"#,
            "0".repeat(64)
        ),
    )
    .unwrap();
    let message = refused("foreign").to_string();
    assert!(message.contains("only for: linux/arm64"), "{message}");
    scene.assert_nothing_left();
}

#[test]
fn sources_are_told_by_their_contents() {
    let scene = Scene::new();
    for (contents, words) in [
        (&b"hello"[..], "is something else"),
        (b"", "is something else"),
        (b"\xfd7zXZ\0rest", "xz -d"),
        (b"BZh9", "bzip2 -d"),
        (b"QFI\xfb", "qemu-img"),
        (
            &gzip(b"hello"),
            "unpacks to something that is no tar archive",
        ),
        (&[0; 4096], "is something else"),
    ] {
        let source = scene.source("rootfs.tar", contents);
        let message = scene.import("x", &source).unwrap_err().to_string();
        assert!(
            message.contains(words) && message.contains("docker save"),
            "{message}"
        );
    }
    let directory = scene.path("directory");
    fs::create_dir(&directory).unwrap();
    let message = scene.import("x", &directory).unwrap_err().to_string();
    assert!(message.contains("without index.json"), "{message}");
    let message = format!(
        "{:?}",
        scene.import("x", &scene.path("nowhere")).unwrap_err()
    );
    assert!(message.contains("nowhere"), "{message}");
}

#[test]
fn names_kernels_and_users_are_checked() {
    let scene = Scene::new();
    let source = scene.source("root.tar", &Archive::new().file("a", b"1").finish());
    for name in ["", "..", "../x", "A", ".x", "a/b", &"x".repeat(200)] {
        let error = scene.import(name, &source).unwrap_err();
        assert!(matches!(error, ImportError::Name(_)), "{name}");
    }
    let mut options = scene.options("x", &source);
    options.kernel = Some("k9".into());
    let message = scene.import_with(&options).unwrap_err().to_string();
    assert!(message.contains("there are: k1"), "{message}");
    options.kernel = Some("k1".into());
    options.default_user = Some("nobody".into());
    let message = scene.import_with(&options).unwrap_err().to_string();
    assert!(message.contains("no user 'nobody'"), "{message}");
    scene.assert_nothing_left();
}

#[test]
fn a_kernel_on_request_is_taken_by_its_name_only() {
    let scene = Scene::new();
    let own = scene.root().join("kernels/own");
    fs::create_dir_all(&own).unwrap();
    // Installed after the other one.
    fs::write(own.join("kernel.json"), r#"{"on_request":true}"#).unwrap();
    let source = scene.source("root.tar", &Archive::new().file("a", b"1").finish());
    let plain = scene.import("plain", &source).unwrap();
    assert_eq!(plain.description.kernel, "k1");
    let mut options = scene.options("named", &source);
    options.kernel = Some("own".into());
    let named = scene.import_with(&options).unwrap();
    assert_eq!(named.description.kernel, "own");
}

#[test]
fn limits_hold_for_all_layers_together() {
    let scene = Scene::new();
    let layout = scene.path("layout");
    oci_layout(&layout, gzip);
    let mut options = scene.options("x", &layout);
    let total: usize = layers().iter().map(Vec::len).sum();
    options.limits = Limits {
        unpacked_bytes: total as u64 - 1,
        ..Limits::default()
    };
    let error = scene.import_with(&options).unwrap_err();
    assert!(
        matches!(
            &error,
            ImportError::Layer {
                number: 2,
                source: ArchiveError::Limit(LimitError::Bytes { .. }),
                ..
            }
        ),
        "{error:?}"
    );
    options.limits.unpacked_bytes = total as u64;
    scene.import_with(&options).unwrap();
    scene.assert_nothing_left();
}

#[test]
fn what_a_killed_import_left_is_swept_by_the_next() {
    let scene = Scene::new();
    let dead = scene.root().join("imports/abc123/tree/etc");
    fs::create_dir_all(&dead).unwrap();
    fs::write(dead.join("shadow"), "x").unwrap();
    let source = scene.source("root.tar", &Archive::new().file("a", b"1").finish());
    scene.import("tiny", &source).unwrap();
    scene.assert_nothing_left();
}

#[test]
fn a_full_disk_is_told_and_the_staging_directory_goes() {
    let scene = Scene::new();
    let archive = Archive::new().file("big", &vec![7; 24 << 20]).finish();
    let source = scene.source("root.tar", &archive);
    let error = scene.on_small_disk(|scene| {
        let error = scene.import("tiny", &source).unwrap_err();
        scene.assert_nothing_left();
        assert!(!scene.root().join("templates/tiny").exists());
        error
    });
    let message = error.to_string();
    assert!(
        message.contains("no space left in") && message.contains("free some"),
        "{message}"
    );
}

#[test]
fn progress_tells_every_phase_and_never_runs_back_in_one() {
    let scene = Scene::new();
    let archive = Archive::new().file("big", &vec![7; 4 << 20]).finish();
    let source = scene.source("root.tar", &archive);
    let updates = std::cell::RefCell::new(Vec::new());
    wrenn_images::import::import(&scene.root(), &scene.options("x", &source), &|update| {
        updates.borrow_mut().push(update);
    })
    .unwrap();
    let updates = updates.into_inner();
    for pair in updates.windows(2) {
        assert!(
            pair[0].phase != pair[1].phase || pair[0].done <= pair[1].done,
            "{pair:?}"
        );
    }
    let mut phases: Vec<Phase> = updates.iter().map(|update| update.phase).collect();
    phases.dedup();
    assert_eq!(
        phases,
        [Phase::Unpacking, Phase::MakingFilesystem, Phase::Finishing]
    );
    let last = updates
        .iter()
        .rfind(|update| update.phase == Phase::Unpacking)
        .unwrap();
    assert_eq!(Some(last.done), last.total);
}
