//! Mounts, and the root file system.
//!
//! The kernel's first root cannot be pivoted away from, which a jail needs to do. So the
//! tree under `/rootfs` moves to a tmpfs, which becomes the root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::boot::{At, BootError};

const NEW_ROOT: &str = "/newroot";
const PACKED_ROOT: &str = "/rootfs";

struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::MS_NODEV);

const EARLY: &[Mount] = &[
    Mount {
        kind: "proc",
        at: "/proc",
        flags: SAFE,
        options: None,
    },
    Mount {
        kind: "sysfs",
        at: "/sys",
        flags: SAFE,
        options: None,
    },
    Mount {
        kind: "devtmpfs",
        at: "/dev",
        flags: MsFlags::MS_NOSUID,
        options: Some("mode=0755"),
    },
];

const LATE: &[Mount] = &[
    Mount {
        kind: "devpts",
        at: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: Some("gid=5,mode=620,ptmxmode=666"),
    },
    Mount {
        kind: "tmpfs",
        at: "/dev/shm",
        flags: MsFlags::MS_NOSUID,
        options: None,
    },
    Mount {
        kind: "tmpfs",
        at: "/run",
        flags: MsFlags::MS_NOSUID,
        options: Some("mode=0755"),
    },
    Mount {
        kind: "tmpfs",
        at: "/tmp",
        flags: MsFlags::MS_NOSUID,
        options: Some("mode=1777"),
    },
    Mount {
        kind: "cgroup2",
        at: "/sys/fs/cgroup",
        flags: SAFE,
        // Moving a process between groups must not wait for a whole RCU period.
        options: Some("nsdelegate,favordynmods"),
    },
];

/// Mounts what loading modules and finding disks needs.
pub(crate) fn mount_early() -> Result<(), BootError> {
    EARLY.iter().try_for_each(mount_one)
}

/// Mounts the rest, and turns on all cgroup controllers for groups below the root.
pub(crate) fn mount_late() -> Result<(), BootError> {
    LATE.iter().try_for_each(mount_one)?;
    let controllers = "/sys/fs/cgroup/cgroup.controllers";
    let enabled: String = fs::read_to_string(controllers)
        .at("read", controllers)?
        .split_whitespace()
        .flat_map(|name| ["+", name, " "])
        .collect();
    let control = "/sys/fs/cgroup/cgroup.subtree_control";
    fs::write(control, enabled).at("write", control)
}

/// Makes a tmpfs with the packed tree in it the root file system.
pub(crate) fn switch_to_tmpfs_root() -> Result<(), BootError> {
    let root = Mount {
        kind: "tmpfs",
        at: NEW_ROOT,
        flags: MsFlags::empty(),
        options: Some("mode=0755"),
    };
    mount_one(&root)?;
    move_tree(Path::new(PACKED_ROOT), Path::new(NEW_ROOT))?;
    for mounted in EARLY {
        let to = format!("{NEW_ROOT}{}", mounted.at);
        fs::create_dir_all(&to).at("create", &to)?;
        mount(
            Some(mounted.at),
            to.as_str(),
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .at("move a mount to", &to)?;
    }
    std::env::set_current_dir(NEW_ROOT).at("enter", NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .at("move the root to", "/")?;
    nix::unistd::chroot(".").at("change the root to", NEW_ROOT)?;
    std::env::set_current_dir("/").at("enter", "/")
}

fn mount_one(what: &Mount) -> Result<(), BootError> {
    fs::create_dir_all(what.at).at("create", what.at)?;
    mount(
        Some(what.kind),
        what.at,
        Some(what.kind),
        what.flags,
        what.options,
    )
    .at("mount", what.at)
}

/// Copies a tree, removing each file at its old place so that it is never in memory twice.
fn move_tree(from: &Path, to: &Path) -> Result<(), BootError> {
    for entry in fs::read_dir(from).at("list", from)? {
        let entry = entry.at("list", from)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().at("look at", &source)?;
        if kind.is_dir() {
            fs::create_dir_all(&target).at("create", &target)?;
            move_tree(&source, &target)?;
        } else if kind.is_symlink() {
            let points_to = fs::read_link(&source).at("read", &source)?;
            symlink(points_to, &target).at("create", &target)?;
        } else {
            fs::copy(&source, &target).at("copy", &source)?;
            fs::remove_file(&source).at("remove", &source)?;
        }
    }
    Ok(())
}
