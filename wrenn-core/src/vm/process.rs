//! The process that runs one VM: started in namespaces of its own, watched by pidfd.
//!
//! Namespaces belong to threads, and a child inherits those of the thread that starts
//! it. So a thread is made for each launch: it leaves the mount namespace, joins the
//! slot's network namespace, asks for a new PID namespace, starts the program with
//! `posix_spawn` (which copies no page tables) and ends. No code runs between fork and
//! exec, and no worker thread ever stands in a namespace that is not the host's.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tracing::{debug, warn};

use super::VmmBinary;
use crate::SandboxId;
use crate::process::ProcessIdentity;

/// Directory that every VMM sees its files in, whichever host and sandbox it is. A
/// snapshot names its disk by path, so this path is part of what makes one portable.
const STABLE_DIRECTORY: &str = "/run/wrenn/vm";

/// What is needed to start a VMM.
#[derive(Clone, Debug)]
pub struct LaunchSpec {
    /// The program.
    pub binary: VmmBinary,
    /// The sandbox that it is for; it stands on the command line, where a later sweep
    /// finds it.
    pub id: SandboxId,
    /// Where it makes its API socket.
    pub api_socket: PathBuf,
    /// Where the guest's console goes.
    pub console: PathBuf,
    /// Where the program's own log goes.
    pub log: PathBuf,
    /// The sandbox's root disk; the VMM sees it as [`LaunchSpec::stable_disk_path`].
    pub disk: PathBuf,
    /// The network namespace that it runs in; the host's where there is none.
    pub network_namespace: Option<PathBuf>,
}

impl LaunchSpec {
    /// The path by which every VMM knows its root disk.
    #[must_use]
    pub fn stable_disk_path() -> PathBuf {
        Path::new(STABLE_DIRECTORY).join("rootfs.ext4")
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody could say.
    Unknown,
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("for a reason unknown"),
        }
    }
}

impl From<ExitStatus> for ExitReason {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }
}

/// Why a VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file of the sandbox cannot be made.
    #[error("cannot make {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step of the set-up was refused by the kernel.
    #[error("cannot {step}; a VMM is started as root")]
    Namespace {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program did not start.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gave no handle on the process.
    #[error("cannot watch the VMM, process {pid}")]
    Watch {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The launching thread died.
    #[error("the thread that starts a VMM died")]
    Thread,
}

/// A running VMM. Dropping it kills the process.
#[derive(Debug)]
pub struct VmmProcess {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<ExitReason>>,
    /// Whether it goes on without us.
    left: bool,
}

impl VmmProcess {
    /// Starts the program.
    ///
    /// # Errors
    /// When a namespace cannot be made, or the program does not start.
    pub async fn launch(spec: LaunchSpec) -> Result<Self, LaunchError> {
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name("vmm-launch".to_owned())
            .spawn(move || {
                // Nobody listens where the caller was cancelled: then the child goes.
                if let Err(Ok(mut orphan)) = sender.send(spawn_in_namespaces(&spec)) {
                    warn!(sandbox_id = %spec.id, "start was cancelled; the VMM is killed");
                    if let Err(error) = orphan.kill().and_then(|()| orphan.wait().map(drop)) {
                        warn!(%error, "cannot kill it");
                    }
                }
            })
            .map_err(|source| LaunchError::Namespace {
                step: "start a thread",
                source,
            })?;
        let child = receiver.await.map_err(|_| LaunchError::Thread)??;
        Self::watch(child)
    }

    /// Takes over a process that another program started; `None` where it has ended.
    pub fn adopt(identity: &ProcessIdentity) -> Option<Self> {
        let pid = identity.pid.cast_unsigned();
        let pidfd = Arc::new(OwnedFd::from(identity.open()?));
        let readable = super::sys::await_pidfd(Arc::clone(&pidfd)).ok()?;
        // Only a parent learns how its child ended.
        Some(Self::await_end(pid, pidfd, readable, || {
            ExitReason::Unknown
        }))
    }

    /// Goes away without it: it keeps running, and [`VmmProcess::adopt`] finds it again.
    pub fn leave(mut self) {
        self.left = true;
    }

    fn watch(mut child: Child) -> Result<Self, LaunchError> {
        let pid = child.id();
        let watched = open_pidfd(pid).and_then(|fd| {
            let fd = Arc::new(fd);
            super::sys::await_pidfd(Arc::clone(&fd)).map(|watched| (fd, watched))
        });
        match watched {
            Ok((pidfd, readable)) => Ok(Self::await_end(pid, pidfd, readable, move || {
                child.wait().map_or(ExitReason::Unknown, ExitReason::from)
            })),
            Err(source) => {
                if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
                    warn!(%error, pid, "cannot kill a VMM that cannot be watched");
                }
                Err(LaunchError::Watch { pid, source })
            }
        }
    }

    fn await_end(
        pid: u32,
        pidfd: Arc<OwnedFd>,
        readable: AsyncFd<Arc<OwnedFd>>,
        reason: impl FnOnce() -> ExitReason + Send + 'static,
    ) -> Self {
        let (sender, exit) = watch::channel(None);
        tokio::spawn(async move {
            let reason = match readable.readable().await {
                Ok(_) => reason(),
                Err(error) => {
                    warn!(%error, pid, "lost sight of a VMM");
                    ExitReason::Unknown
                }
            };
            debug!(pid, %reason, "the VMM ended");
            sender.send_replace(Some(reason));
        });
        Self {
            pid,
            pidfd,
            exit,
            left: false,
        }
    }

    /// The process id, as this host sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process has ended. May be called often and by many.
    pub async fn exited(&self) -> ExitReason {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(reason) => reason.unwrap_or(ExitReason::Unknown),
            Err(_) => ExitReason::Unknown,
        }
    }

    /// Kills the process and waits until it is gone.
    pub async fn kill(&self) {
        self.send_kill();
        self.exited().await;
    }

    fn send_kill(&self) {
        if self.exit.borrow().is_some() {
            return;
        }
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => warn!(%error, pid = self.pid, "cannot kill the VMM"),
        }
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        if !self.left {
            self.send_kill();
        }
    }
}

fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// Runs on a thread that ends afterwards, so nothing has to be put back.
fn spawn_in_namespaces(spec: &LaunchSpec) -> Result<Child, LaunchError> {
    let console = create(&spec.console)?;
    let console_too = console.try_clone().map_err(|source| LaunchError::File {
        path: spec.console.clone(),
        source,
    })?;
    create(&spec.log)?;

    let network = spec.network_namespace.as_deref().map(open).transpose()?;
    step("leave the mount namespace", || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
    })?;
    show_disk(&spec.disk)?;
    if let Some(namespace) = network {
        step("join the slot's network namespace", || {
            nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)
        })?;
    }
    step("make a PID namespace", || {
        nix::sched::unshare(CloneFlags::CLONE_NEWPID)
    })?;

    std::process::Command::new(spec.binary.path())
        .args(["--id", spec.id.as_str(), "--level", "Warning"])
        .arg("--api-sock")
        .arg(&spec.api_socket)
        .arg("--log-path")
        .arg(&spec.log)
        .env_clear()
        // Ctrl-C at a terminal reaches this program's group; the VMM is not to hear it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(console)
        .stderr(console_too)
        .spawn()
        .map_err(|source| LaunchError::Spawn {
            program: spec.binary.path().to_owned(),
            source,
        })
}

/// Puts the disk at the path by which every VMM knows its own.
fn show_disk(disk: &Path) -> Result<(), LaunchError> {
    let none = None::<&str>;
    step("keep mounts from the host", || {
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
    })?;
    std::fs::create_dir_all(STABLE_DIRECTORY).map_err(|source| LaunchError::File {
        path: PathBuf::from(STABLE_DIRECTORY),
        source,
    })?;
    step("mount a place for the disk", || {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        nix::mount::mount(
            Some("wrenn"),
            STABLE_DIRECTORY,
            Some("tmpfs"),
            flags,
            Some("size=64k"),
        )
    })?;
    let target = LaunchSpec::stable_disk_path();
    create(&target)?;
    step("show the disk to the VMM", || {
        nix::mount::mount(Some(disk), &target, none, MsFlags::MS_BIND, none)
    })
}

fn step(step: &'static str, act: impl FnOnce() -> nix::Result<()>) -> Result<(), LaunchError> {
    act().map_err(|errno| LaunchError::Namespace {
        step,
        source: errno.into(),
    })
}

fn create(path: &Path) -> Result<File, LaunchError> {
    File::create(path).map_err(|source| LaunchError::File {
        path: path.to_owned(),
        source,
    })
}

fn open(path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(|source| LaunchError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that does what a VMM must for these tests: print its view and wait.
    fn spec(directory: &Path, script: &str) -> LaunchSpec {
        let program = directory.join("vmm");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let disk = directory.join("disk");
        std::fs::write(&disk, "this is the disk").unwrap();
        LaunchSpec {
            binary: VmmBinary::find(Some(&program), None).unwrap(),
            id: SandboxId::random(),
            api_socket: directory.join("vmm.sock"),
            console: directory.join("console.log"),
            log: directory.join("vmm.log"),
            disk,
            network_namespace: None,
        }
    }

    #[tokio::test]
    async fn it_runs_alone_and_sees_its_disk_at_the_stable_path() {
        let directory = tempfile::tempdir().unwrap();
        let spec = spec(
            directory.path(),
            "echo pid $$; cat /run/wrenn/vm/rootfs.ext4; exit 7",
        );
        let console = spec.console.clone();
        let process = VmmProcess::launch(spec).await.unwrap();
        assert_eq!(process.exited().await, ExitReason::Code(7));
        assert_eq!(
            std::fs::read_to_string(console).unwrap(),
            "pid 1\nthis is the disk"
        );
        assert!(
            !LaunchSpec::stable_disk_path().exists(),
            "the mount leaked to the host"
        );
    }

    #[tokio::test]
    async fn dropping_it_kills_it() {
        let directory = tempfile::tempdir().unwrap();
        let process = VmmProcess::launch(spec(directory.path(), "sleep 1000"))
            .await
            .unwrap();
        let mut exit = process.exit.clone();
        drop(process);
        let reason = *exit.wait_for(Option::is_some).await.unwrap();
        assert_eq!(reason, Some(ExitReason::Signal(9)));
    }

    #[tokio::test]
    async fn a_missing_namespace_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = spec(directory.path(), "true");
        spec.network_namespace = Some(PathBuf::from("/run/netns/no-such-namespace"));
        let error = VmmProcess::launch(spec).await.unwrap_err();
        assert!(error.to_string().contains("no-such-namespace"), "{error}");
    }
}
