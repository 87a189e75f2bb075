//! Hazard 62: no module is loaded, whatever `/etc/nsswitch.conf` names.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
#![allow(
    clippy::disallowed_methods,
    reason = "a lookup needs a process of its own"
)]

use std::net::ToSocketAddrs as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const MODE: &str = "WRENN_NSS_LOOKUP";

/// Not a test: what the test runs in a process of its own.
#[test]
#[ignore = "runs in a process of its own, which the test beside it starts"]
fn lookup() {
    let configured = std::env::var(MODE).unwrap() == "configured";
    if configured {
        wrenn_nss::use_files_and_dns().unwrap();
    }
    // A module is loaded for a name that no file holds.
    let found = ("no-such-host.invalid", 1).to_socket_addrs();
    assert!(found.is_err());
    if configured {
        let found = ("localhost", 8080).to_socket_addrs().unwrap();
        assert!(found.into_iter().all(|address| address.ip().is_loopback()));
    }
}

/// Whether a lookup opens the module that a file like `/etc/nsswitch.conf` names.
fn loads_module(mode: &str, directory: &Path) -> bool {
    let module = directory.join("libnss_wrenntrap.so.2");
    std::fs::write(&module, "no library").unwrap();
    let watch = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    add_watch(&watch, &module, WatchFlags::OPEN).unwrap();
    let switch = directory.join("nsswitch.conf");
    std::fs::write(&switch, "hosts: wrenntrap\n").unwrap();
    let (mode, directory) = (mode.to_owned(), directory.to_owned());
    let run = move || {
        // SAFETY: no descriptor table is split off, only this thread's view of the mounts.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        mount_bind(&switch, "/etc/nsswitch.conf").unwrap();
        mount_remount(
            "/etc/nsswitch.conf",
            MountFlags::BIND | MountFlags::RDONLY,
            c"",
        )
        .unwrap();
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lookup", "--ignored"])
            .env(MODE, mode)
            .env("LD_LIBRARY_PATH", directory)
            .output()
            .unwrap()
    };
    let output = std::thread::spawn(run).join().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let mut events = rustix::fs::inotify::Reader::new(&watch, &mut buffer);
    events.next().is_ok()
}

#[test]
fn no_module_is_loaded_for_a_host_name() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root: it puts another file over /etc/nsswitch.conf"
    );
    if !Path::new("/etc/nsswitch.conf").exists() {
        panic!("this host has no /etc/nsswitch.conf to put another file over");
    }
    let directory = tempfile::tempdir().unwrap();
    assert!(
        loads_module("as it is", directory.path()),
        "without, the module would be loaded: the test can tell"
    );
    assert!(!loads_module("configured", directory.path()));
}
