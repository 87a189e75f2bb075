//! What a child does between fork and exec.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};

/// Whom a child becomes.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// How a child differs from the daemon.
#[derive(Debug, Clone)]
pub struct ChildSetup {
    /// Absent: stays who the daemon is.
    pub credentials: Option<Credentials>,
    /// Its standard input is a terminal that shall control it.
    pub controlling_terminal: bool,
}

/// Starts a command as leader of a session of its own.
pub fn spawn(mut command: Command, setup: ChildSetup) -> io::Result<Child> {
    let groups: Vec<Gid> = setup
        .credentials
        .iter()
        .flat_map(|credentials| &credentials.groups)
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let become_child = move || -> io::Result<()> {
        rustix::process::setsid()?;
        if setup.controlling_terminal {
            rustix::process::ioctl_tiocsctty(standard_input())?;
        }
        prefer_for_out_of_memory();
        crate::programs::join();
        rustix::process::umask(Mode::WGRP | Mode::WOTH);
        if let Some(credentials) = &setup.credentials {
            rustix::thread::set_thread_groups(&groups)?;
            let gid = Gid::from_raw(credentials.gid);
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            let uid = Uid::from_raw(credentials.uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only plain system calls are made; nothing
    // allocates, locks or unwinds, since everything was prepared above.
    unsafe { command.pre_exec(become_child) };
    command.spawn()
}

fn standard_input() -> BorrowedFd<'static> {
    // SAFETY: the child's descriptor 0 was put there a moment ago and stays until exec.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// When memory runs out, what the user started goes before the daemon. Failing is
/// fine: then the kernel chooses by size alone.
fn prefer_for_out_of_memory() {
    let path = c"/proc/self/oom_score_adj";
    if let Ok(file) = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        rustix::io::write(file, b"100").ok();
    }
}
