//! A mount namespace in which only the directories for temporary files can be written, for
//! whoever does as strangers say. A daemon that runs as root, and has a fault, could
//! otherwise take the files of the person who tests it along.

use std::io;
use std::path::PathBuf;

use rustix::mount::{
    MountFlags, MountPropagationFlags, mount_bind_recursive, mount_change, mount_remount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread, and whatever it starts, into such a namespace. Somebody who
/// is not root may make none, and stays where they are.
pub fn enter() -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // SAFETY: no descriptor table is split off, only the thread's view of the mounts.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    // Mounts of their own, these don't become read-only with what they lie on.
    let writable = [
        std::env::temp_dir(),
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
    ];
    for directory in &writable {
        mount_bind_recursive(directory, directory)?;
    }
    for mount in mounts()? {
        if !mount.starts_with("/dev") && !mount.starts_with("/proc") && !mount.starts_with("/sys") {
            mount_remount(&mount, MountFlags::BIND | MountFlags::RDONLY, c"")?;
        }
    }
    for directory in &writable {
        mount_remount(directory, MountFlags::BIND, c"")?;
    }
    Ok(())
}

/// Where something is mounted, by `/proc/thread-self/mountinfo`.
fn mounts() -> io::Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(str::to_owned)
        .collect())
}
