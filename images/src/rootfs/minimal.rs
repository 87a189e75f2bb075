//! `minimal`: busybox and the guest daemon, for tests that want a guest quickly.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use crate::archive::Archive;
use crate::cache::{Cache, remove_tree};
use crate::command::Program;
use crate::error::{AtPath, BuildError};
use crate::recipe::Recipe;
use crate::rootfs::Template;
use crate::rootfs::ext4::Filesystem;

const FOLDERS: &[&str] = &[
    "bin",
    "dev",
    "etc",
    "home",
    "lib",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "sbin",
    "srv",
    "sys",
    "tmp",
    "usr/bin",
    "usr/local/bin",
    "usr/sbin",
    "var/log",
    "var/tmp",
];

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nuser:x:1000:\n"),
    (
        "etc/shadow",
        "root:*:19000:0:99999:7:::\nuser:*:19000:0:99999:7:::\n",
    ),
    (
        "etc/hosts",
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    (
        "etc/profile",
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
    ),
];

const USER: u32 = 1000;

pub(super) const TEMPLATE: Template = Template {
    name: "minimal",
    kinds: ["rootfs-minimal-debian", "rootfs-minimal"],
    // No journal: nothing in such a guest is worth keeping.
    filesystem: Filesystem {
        label: "wrenn-minimal",
        size_mib: 256,
        journal_mib: None,
    },
    recipe,
    fill,
};

fn recipe(recipe: Recipe) -> Recipe {
    let files = FILES.iter().flat_map(|(name, contents)| [*name, *contents]);
    recipe
        .inputs("folder", FOLDERS.iter().copied())
        .inputs("file", files)
}

fn fill(cache: &Cache, tree: &Path) -> Result<(), BuildError> {
    for folder in FOLDERS {
        let path = tree.join(folder);
        fs::create_dir_all(&path).at("create", &path)?;
    }
    for (name, contents) in FILES {
        let path = tree.join(name);
        fs::write(&path, contents).at("write", &path)?;
    }
    add_busybox(cache, tree)?;
    for (name, mode) in [
        ("tmp", 0o1777),
        ("var/tmp", 0o1777),
        ("root", 0o700),
        ("etc/shadow", 0o640),
    ] {
        let path = tree.join(name);
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).at("set the mode of", &path)?;
    }
    let home = tree.join("home/user");
    fs::create_dir(&home).at("create", &home)?;
    chown(&home, Some(USER), Some(USER)).at("set the owner of", &home)
}

/// Puts busybox into `tree` as `/bin/busybox`, with a link for everything that it can do.
///
/// # Errors
/// The package cannot be fetched, or the tree not written.
pub fn add_busybox(cache: &Cache, tree: &Path) -> Result<(), BuildError> {
    let package = tree.with_extension("package");
    Archive::open(cache)?.unpack("busybox-static", &package)?;
    let busybox = tree.join("bin/busybox");
    fs::rename(package.join("bin/busybox"), &busybox).at("move busybox to", &busybox)?;
    remove_tree(&package)?;
    for applet in Program::new(&busybox.to_string_lossy())
        .arg("--list-full")
        .text()?
        .lines()
    {
        let link = tree.join(applet);
        if link.parent().is_some_and(Path::is_dir) && !link.exists() {
            symlink("/bin/busybox", &link).at("create", &link)?;
        }
    }
    Ok(())
}
