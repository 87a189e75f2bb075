//! `base`: Debian with what most programs written for sandboxes expect.

use std::path::Path;

use crate::archive::{RELEASE, SOURCES};
use crate::cache::Cache;
use crate::command::Program;
use crate::error::{AtPath, BuildError};
use crate::recipe::Recipe;
use crate::rootfs::ext4::Filesystem;
use crate::rootfs::{EPOCH, Template};

/// On top of what Debian calls essential, which holds bash and coreutils.
const PACKAGES: &[&str] = &[
    "bash",
    "ca-certificates",
    "coreutils",
    "curl",
    "git",
    "iproute2",
    "less",
    "ncurses-base",
    "ncurses-bin",
    "procps",
    "python-is-python3",
    "python3",
    "sudo",
    "vim-tiny",
];

/// Left out of every package: nobody reads manuals in a sandbox.
const DPKG_OPTIONS: &[&str] = &[
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// Run by a shell outside with the tree as `$1`, after all packages are set up. The user is
/// written by hand, since useradd notes today's date.
const CUSTOMIZE: &[&str] = &[
    r#"echo 'user:x:1000:1000:user:/home/user:/bin/bash' >> "$1/etc/passwd""#,
    r#"echo 'user:x:1000:' >> "$1/etc/group""#,
    r#"echo 'user:*:19000:0:99999:7:::' >> "$1/etc/shadow""#,
    r#"echo 'user:*::' >> "$1/etc/gshadow""#,
    r#"cp -a "$1/etc/skel" "$1/home/user" && chmod 755 "$1/home/user" && chown -R 1000:1000 "$1/home/user""#,
    r#"echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' > "$1/etc/sudoers.d/user" && chmod 440 "$1/etc/sudoers.d/user""#,
    r#"printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$1/etc/hosts""#,
    r#"rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1"/etc/passwd- "$1"/etc/group- "$1"/etc/shadow- "$1"/etc/gshadow-"#,
    r#"rm -rf "$1"/var/log/* "$1"/var/cache/ldconfig "$1"/var/cache/debconf "$1"/var/lib/systemd"#,
    // Names a machine; every sandbox is one of its own.
    r#": > "$1/etc/machine-id""#,
    // Compiled Python holds the times of its sources, and python3 makes it again when it
    // can; but without it the first start in each sandbox takes three times as long.
    r#"SOURCE_DATE_EPOCH= chroot "$1" python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/lib/python3 >/dev/null || true"#,
];

pub(super) const TEMPLATE: Template = Template {
    name: "base",
    kinds: ["rootfs-base-debian", "rootfs-base"],
    filesystem: Filesystem {
        label: "wrenn-base",
        size_mib: 2048,
        journal_mib: Some(16),
    },
    recipe,
    fill,
};

fn recipe(recipe: Recipe) -> Recipe {
    recipe
        .input("release", RELEASE)
        .inputs("source", SOURCES.iter().copied())
        .inputs("package", PACKAGES.iter().copied())
        .inputs("dpkg", DPKG_OPTIONS.iter().copied())
        .inputs("customize", CUSTOMIZE.iter().copied())
        .input("epoch", &EPOCH.to_string())
}

fn fill(_cache: &Cache, tree: &Path) -> Result<(), BuildError> {
    let archive = tree.with_extension("tar");
    Program::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--format=tar"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .args(
            DPKG_OPTIONS
                .iter()
                .map(|option| format!("--dpkgopt={option}")),
        )
        .args(
            CUSTOMIZE
                .iter()
                .map(|hook| format!("--customize-hook={hook}")),
        )
        .arg(RELEASE)
        .arg(&archive)
        .args(SOURCES)
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
        .run()?;
    Program::new("tar")
        .args([
            "--extract",
            "--preserve-permissions",
            "--numeric-owner",
            "--xattrs",
        ])
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(tree)
        .run()?;
    std::fs::remove_file(&archive).at("remove", &archive)
}
