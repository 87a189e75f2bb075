//! File systems that the kernel makes, and where they belong.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use super::console::warn;

struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    options: &'static std::ffi::CStr,
}

const PROTECTED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Nothing works without these.
const FIRST: [Mount; 4] = [
    Mount {
        kind: "proc",
        at: "/proc",
        flags: PROTECTED,
        options: c"",
    },
    Mount {
        kind: "sysfs",
        at: "/sys",
        flags: PROTECTED,
        options: c"",
    },
    Mount {
        kind: "devtmpfs",
        at: "/dev",
        flags: MountFlags::NOSUID,
        options: c"mode=0755",
    },
    Mount {
        kind: "tmpfs",
        at: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=0755",
    },
];

/// Processes expect these; the daemon can start meanwhile.
const SECOND: [Mount; 3] = [
    Mount {
        kind: "devpts",
        at: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"mode=0620,gid=5,ptmxmode=0666",
    },
    Mount {
        kind: "tmpfs",
        at: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
    Mount {
        kind: "cgroup2",
        at: "/sys/fs/cgroup",
        flags: PROTECTED,
        options: c"nsdelegate",
    },
];

/// Names that programs look for in /dev and that the kernel does not make.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

pub(super) fn first() {
    // /proc tells what is mounted, so it is simply tried.
    for file_system in &FIRST {
        if !is_mounted(file_system.at) {
            attach(file_system);
        }
    }
}

pub(super) fn second() {
    for file_system in &SECOND {
        if !is_mounted(file_system.at) {
            attach(file_system);
        }
    }
    for (name, target) in LINKS {
        if let Err(error) = symlink(target, name)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            warn(&format!("cannot link {name}: {error}"));
        }
    }
    temporary_directory();
}

/// /tmp stays on the root disk, where there is more room than in memory; only on a
/// read-only root it is memory.
fn temporary_directory() {
    let on_disk = fs::create_dir_all("/tmp")
        .and_then(|()| fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777)));
    if on_disk.is_err() && !is_mounted("/tmp") {
        attach(&Mount {
            kind: "tmpfs",
            at: "/tmp",
            flags: MountFlags::NOSUID.union(MountFlags::NODEV),
            options: c"mode=1777",
        });
    }
}

fn attach(file_system: &Mount) {
    let Mount {
        kind,
        at,
        flags,
        options,
    } = file_system;
    if !Path::new(at).is_dir() {
        // On a read-only root it must be there already, and mounting tells.
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(at)
            .ok();
    }
    match mount(*kind, *at, *kind, *flags, *options) {
        Ok(()) | Err(rustix::io::Errno::BUSY) => {}
        Err(error) => warn(&format!("cannot mount {kind} on {at}: {error}")),
    }
}

/// Whether a file system of its own is there: its device differs from its parent's.
fn is_mounted(path: &str) -> bool {
    use std::os::unix::fs::MetadataExt as _;

    let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
    match (fs::metadata(path), fs::metadata(parent)) {
        (Ok(own), Ok(parent)) => own.dev() != parent.dev(),
        _ => false,
    }
}
