//! Starts the daemon of a guest, and finds the port that the kernel chose for it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::files::GuestFiles;
use super::tree;

/// How long a daemon may take until it listens. The machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a guest did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("cannot enter the mount namespace of the guest")]
    Enter(#[source] io::Error),
    #[error("cannot start {program}")]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the guest's daemon ended with {status} before it listened:\n{log}")]
    Ended {
        status: std::process::ExitStatus,
        log: String,
    },
    #[error("the guest's daemon listens on no port after {} s", DEADLINE.as_secs())]
    Silent,
    #[error("the guest's daemon refuses its set-up: {0}")]
    Init(String),
}

/// A daemon that listens. It is not killed when this is dropped.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) child: Child,
    pub(super) address: SocketAddr,
}

/// Runs on a thread of its own, which ends afterwards: it may be in another namespace.
pub(super) fn launch(
    program: &Path,
    files: &GuestFiles,
    marker: &str,
    log: &Path,
) -> Result<Launched, LaunchError> {
    let failed = |source| LaunchError::Spawn {
        program: program.to_owned(),
        source,
    };
    // The program may lie where the guest has its own files, so it is opened before.
    let opened = File::open(program).map_err(failed)?;
    let output = File::create(log).map_err(failed)?;
    let name = format!("/proc/{}/fd/{}", std::process::id(), opened.as_raw_fd());
    files.enter().map_err(LaunchError::Enter)?;
    let mut child = Command::new(name)
        .arg0("wrenn-envd")
        .args(["--address", "127.0.0.1", "--port", "0"])
        .args(["--default-user", files.isolation().default_user()])
        .current_dir("/")
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env(tree::MARKER, marker)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    match await_port(&mut child, log) {
        Ok(port) => Ok(Launched {
            child,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        }),
        Err(error) => {
            // It listens on nothing, so it has started nothing.
            child.kill().ok();
            child.wait().ok();
            Err(error)
        }
    }
}

fn await_port(child: &mut Child, log: &Path) -> Result<u16, LaunchError> {
    let since = Instant::now();
    loop {
        if let Some(port) = listening_port(child.id()) {
            return Ok(port);
        }
        if let Ok(Some(status)) = child.try_wait() {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            return Err(LaunchError::Ended { status, log });
        }
        if since.elapsed() > DEADLINE {
            return Err(LaunchError::Silent);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The port of the first listening TCP socket among a process's descriptors.
fn listening_port(pid: u32) -> Option<u16> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let inodes: HashSet<String> = descriptors
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|target| {
            let inode = target.to_str()?.strip_prefix("socket:[")?;
            Some(inode.strip_suffix(']')?.to_owned())
        })
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    table.lines().find_map(|line| {
        let (port, inode) = listener(line)?;
        inodes.contains(inode).then_some(port)
    })
}

/// Port and inode of a line of `/proc/net/tcp`, if it is a listening socket's.
fn listener(line: &str) -> Option<(u16, &str)> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let address = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let port = address.split_once(':')?.1;
    (state == LISTEN).then_some((u16::from_str_radix(port, 16).ok()?, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_socket_is_read_from_the_table() {
        let line = "   0: 0100007F:90B5 00000000:0000 0A 00000000:00000000 00:00000000 \
                    00000000     0        0 31701 1 000000009db06785 100 0 0 10 0";
        assert_eq!(listener(line), Some((0x90B5, "31701")));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("  sl  local_address rem_address   st"), None);
    }
}
