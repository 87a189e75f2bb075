//! The process that runs one VM: started in a jail, watched by pidfd.
//!
//! | what | how it is for the VMM |
//! |---|---|
//! | files | a root of its own, see [`super::jail`] |
//! | user, group | the VM's own, no supplementary groups |
//! | capabilities | none, and none to be had: empty bounding set, no new privileges |
//! | namespaces | mount, PID (it is process 1), network (the slot's), IPC, UTS, cgroup |
//! | processor, memory, processes | limited by a cgroup that it is born in, see [`super::cgroup`] |
//! | descriptors | 0 `/dev/null`, 1 and 2 the console's file; at most 2048 |
//! | environment, terminal | none; a session of its own, so Ctrl-C does not reach it |
//! | core dumps | never: they would hold the guest's memory |
//! | system calls | the VMM filters its own threads, once they have what they need |
//!
//! File sizes are not limited: a disk may be larger than any limit that would help.
//!
//! Root directory, namespaces and the bounding set belong to threads, and a child
//! inherits those of the thread that starts it. So a thread is made for each launch: it
//! arranges all that for itself, starts the program and ends. No worker thread ever
//! stands in a namespace that is not the host's. The kernel's signal at a parent's death
//! (`PR_SET_PDEATHSIG`) comes when that thread ends; so where a VMM is to die with this
//! program, the thread returns to the host's namespaces and waits for the VMM's end. The rest
//! (user, cgroup, session, descriptors) is done by the child itself, from a list of system calls
//! without any code of ours, while it still borrows this process's memory: see `sys::spawn`.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tracing::{debug, warn};

use super::VmmBinary;
use super::cgroup::{Stage, Tally, VmCgroup};
use super::jail::{self, JailError, JailFile, JailSpec};
use super::sys::{self, BirthError, BirthStep};
use crate::SandboxId;
use crate::process::{ProcessIdentity, set_oom_score};

/// Most descriptors of a VMM: what Firecracker's own launcher allows.
const MAX_DESCRIPTORS: u64 = 2048;
/// What its host is called, for a VMM that asks.
const HOST_NAME: &str = "vmm";
const SHARED: &str = "shared";
const SOCKET: &str = "vmm.sock";
const LOG: &str = "vmm.log";

/// What is needed to start a VMM.
#[derive(Debug)]
pub struct LaunchSpec {
    /// The program, which must be static: there are no libraries in its jail.
    pub binary: VmmBinary,
    /// The sandbox that it is for; it stands on the command line, where a later sweep
    /// finds it.
    pub id: SandboxId,
    /// The sandbox's directory. It gets the console, the log and the directory that host
    /// and VMM share.
    pub directory: PathBuf,
    /// The network namespace that it runs in; an empty one where there is none.
    pub network_namespace: Option<PathBuf>,
    /// What it sees and whom it runs as.
    pub jail: JailSpec,
    /// What it may take; it is removed when the process has ended.
    pub cgroup: Option<VmCgroup>,
    /// Whether the kernel kills it when this program ends, however that ends.
    pub dies_with_parent: bool,
}

impl LaunchSpec {
    /// The path by which every VMM knows its root disk.
    #[must_use]
    pub fn stable_disk_path() -> PathBuf {
        jail::path_inside("rootfs.ext4")
    }

    /// Where the guest's console goes, and what the VMM prints.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        Self::console_in(&self.directory)
    }

    /// The API socket, as the host sees it.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        Self::api_socket_in(&self.directory)
    }

    /// The same, for the sandbox of this directory.
    #[must_use]
    pub fn console_in(directory: &Path) -> PathBuf {
        directory.join("console.log")
    }

    /// What the VMM itself logs, for the sandbox of this directory.
    #[must_use]
    pub fn log_in(directory: &Path) -> PathBuf {
        directory.join(LOG)
    }

    pub(super) fn api_socket_in(directory: &Path) -> PathBuf {
        Self::shared_in(directory).join(SOCKET)
    }

    /// The directory that VMM and host share, for the sandbox of this directory: the only
    /// place where the VMM makes files. It is emptied at each launch.
    #[must_use]
    pub fn shared_in(directory: &Path) -> PathBuf {
        directory.join(SHARED)
    }

    /// The path by which the VMM knows the file of this name in the shared directory.
    #[must_use]
    pub fn shared_path(name: &str) -> PathBuf {
        jail::path_inside(SHARED).join(name)
    }

    /// The program's arguments. As its own name, which no VMM reads, it is told a path
    /// in the sandbox's directory: by this a sweep knows whose it is.
    fn arguments(&self) -> Vec<Vec<u8>> {
        let socket = jail::path_inside(SHARED).join(SOCKET);
        let log = jail::path_inside(LOG);
        let name = self.directory.join("vmm");
        let parts: [&OsStr; 9] = [
            name.as_os_str(),
            "--id".as_ref(),
            self.id.as_str().as_ref(),
            "--level".as_ref(),
            "Warning".as_ref(),
            "--api-sock".as_ref(),
            socket.as_os_str(),
            "--log-path".as_ref(),
            log.as_os_str(),
        ];
        parts.map(|part| part.as_bytes().to_vec()).to_vec()
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

impl ExitReason {
    /// Takes the end of a process off the kernel's hands.
    fn reap(process: &OwnedFd) -> Self {
        match waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Self::Code(code),
                (None, Some(signal)) => Self::Signal(signal),
                (None, None) => Self::Unknown,
            },
            Ok(None) | Err(_) => Self::Unknown,
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
    SetUp {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its view of the host could not be made.
    #[error("cannot build the VMM's jail")]
    Jail(#[from] JailError),
    /// The program did not start.
    #[error("cannot run {program}; it must be a static program that everybody may execute")]
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

/// A running VMM. Dropping it kills the process, unless it is [kept](Self::set_kept).
#[derive(Debug)]
pub struct VmmProcess {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<ExitReason>>,
    /// There until its process has ended, or is left.
    cgroup: Arc<Mutex<Option<VmCgroup>>>,
    /// Of its cgroup.
    tally: Option<Tally>,
    /// Whether it goes on without us.
    kept: bool,
}

impl VmmProcess {
    /// Starts the program in its jail.
    ///
    /// # Errors
    /// When the jail cannot be built, or the program does not start.
    pub async fn launch(mut spec: LaunchSpec) -> Result<Self, LaunchError> {
        let arguments = spec.arguments();
        let cgroup = spec.cgroup.take();
        Self::launch_with(spec, cgroup, arguments).await
    }

    async fn launch_with(
        spec: LaunchSpec,
        cgroup: Option<VmCgroup>,
        arguments: Vec<Vec<u8>>,
    ) -> Result<Self, LaunchError> {
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name("vmm-launch".to_owned())
            .spawn(move || {
                let started = match start(&spec, cgroup.as_ref(), arguments) {
                    Ok(started) => started,
                    Err(error) => {
                        // A caller that was cancelled needs no reason.
                        sender.send(Err(error)).ok();
                        return;
                    }
                };
                let Started {
                    pid,
                    pidfd,
                    watched,
                } = started;
                // Nobody listens where the caller was cancelled: then the child goes.
                if let Err(Ok((pid, pidfd, cgroup))) = sender.send(Ok((pid, pidfd, cgroup))) {
                    warn!(sandbox_id = %spec.id, "start was cancelled; the VMM is killed");
                    end(pid, &pidfd, cgroup);
                }
                if let Some(watched) = watched {
                    wait_for_end(&watched);
                }
            })
            .map_err(|source| LaunchError::SetUp {
                step: "start a thread",
                source,
            })?;
        let (pid, pidfd, cgroup) = receiver.await.map_err(|_| LaunchError::Thread)??;
        set_oom_score(pid);
        Self::watch(pid, pidfd, cgroup)
    }

    /// Takes over a process that another program started, and its cgroup; `None` where it
    /// has ended. How it ends one day, only a parent would learn.
    ///
    /// # Errors
    /// When it is unknown whether it has ended. Nothing is changed then.
    pub fn adopt(identity: &ProcessIdentity, cgroup: Option<VmCgroup>) -> io::Result<Option<Self>> {
        let found = identity.open().and_then(|process| {
            let Some(process) = process else {
                return Ok(None);
            };
            let pidfd = Arc::new(OwnedFd::from(process));
            let readable = sys::await_pidfd(Arc::clone(&pidfd))?;
            Ok(Some((pidfd, readable)))
        });
        match found {
            Ok(Some((pidfd, readable))) => {
                let pid = identity.pid.cast_unsigned();
                Ok(Some(Self::await_end(pid, pidfd, readable, cgroup)))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                // The VM may be in it.
                if let Some(cgroup) = cgroup {
                    cgroup.leave();
                }
                Err(error)
            }
        }
    }

    /// Goes away without it: it keeps running, and [`VmmProcess::adopt`] finds it again.
    pub fn leave(mut self) {
        self.kept = true;
    }

    /// Sets whether it goes on when this is dropped.
    pub fn set_kept(&mut self, kept: bool) {
        self.kept = kept;
    }

    fn watch(pid: u32, pidfd: OwnedFd, cgroup: Option<VmCgroup>) -> Result<Self, LaunchError> {
        let pidfd = Arc::new(pidfd);
        match sys::await_pidfd(Arc::clone(&pidfd)) {
            Ok(readable) => Ok(Self::await_end(pid, pidfd, readable, cgroup)),
            Err(source) => {
                end(pid, &pidfd, cgroup);
                Err(LaunchError::Watch { pid, source })
            }
        }
    }

    fn await_end(
        pid: u32,
        pidfd: Arc<OwnedFd>,
        readable: AsyncFd<Arc<OwnedFd>>,
        cgroup: Option<VmCgroup>,
    ) -> Self {
        let tally = cgroup.as_ref().map(|cgroup| cgroup.tally().clone());
        let (sender, exit) = watch::channel(None);
        let cgroup = Arc::new(Mutex::new(cgroup));
        let left_behind = Arc::clone(&cgroup);
        tokio::spawn(async move {
            let reason = match readable.readable().await {
                Ok(_) => ExitReason::reap(readable.get_ref()),
                Err(error) => {
                    warn!(%error, pid, "lost sight of a VMM");
                    ExitReason::Unknown
                }
            };
            debug!(pid, %reason, "the VMM ended");
            // Before anybody is told, so that who waits for the end finds nothing left.
            let cgroup = lock(&left_behind).take();
            if let Some(cgroup) = cgroup
                && let Err(error) = tokio::task::spawn_blocking(move || cgroup.remove()).await
            {
                warn!(%error, pid, "a worker thread died");
            }
            sender.send_replace(Some(reason));
        });
        if let Some(tally) = &tally {
            tally.set(Stage::InUse);
        }
        Self {
            pid,
            pidfd,
            exit,
            cgroup,
            tally,
            kept: false,
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
        self.end();
        self.exited().await;
    }

    /// Kills the process.
    pub fn end(&self) {
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
        if self.kept {
            if let Some(cgroup) = lock(&self.cgroup).take() {
                cgroup.leave();
            }
            return;
        }
        if let Some(tally) = &self.tally {
            tally.set(Stage::Busy);
        }
        self.end();
    }
}

fn lock(cgroup: &Mutex<Option<VmCgroup>>) -> MutexGuard<'_, Option<VmCgroup>> {
    cgroup.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a process that nobody wants, and waits for its end.
fn end(pid: u32, process: &OwnedFd, cgroup: Option<VmCgroup>) {
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) => {
            ExitReason::reap(process);
        }
        Err(error) => warn!(%error, pid, "cannot kill a VMM that nobody watches"),
    }
    if let Some(cgroup) = cgroup {
        cgroup.remove();
    }
}

/// Builds the jail around the calling thread and starts the program in it. The thread
/// must end afterwards.
fn start(
    spec: &LaunchSpec,
    cgroup: Option<&VmCgroup>,
    arguments: Vec<Vec<u8>>,
) -> Result<Started, LaunchError> {
    SigSet::all()
        .thread_block()
        .map_err(refused("block signals"))?;
    let console = above_standard(&create(&spec.console())?)?;
    let nothing = above_standard(&open(Path::new("/dev/null"))?)?;
    let network = spec.network_namespace.as_deref().map(open).transpose()?;
    let cgroup = match cgroup {
        Some(cgroup) => Some(cgroup.open().map_err(|source| LaunchError::File {
            path: cgroup.path().to_owned(),
            source,
        })?),
        None => None,
    };
    let jail = with_own_files(spec)?;
    let host = spec
        .dies_with_parent
        .then(HostNamespaces::open)
        .transpose()?;

    nix::sched::unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_FS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .map_err(refused("leave the mount, IPC and UTS namespaces"))?;
    umask(Mode::from_bits_truncate(0o022));
    jail::enter(&jail, spec.binary.path())?;
    umask(Mode::from_bits_truncate(0o077));
    nix::unistd::sethostname(HOST_NAME).map_err(refused("set the host name"))?;
    match network {
        Some(namespace) => nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(refused("join the slot's network namespace"))?,
        None => nix::sched::unshare(CloneFlags::CLONE_NEWNET)
            .map_err(refused("make a network namespace"))?,
    }
    nix::sched::unshare(CloneFlags::CLONE_NEWPID).map_err(refused("make a PID namespace"))?;
    give_up_capabilities().map_err(refused("give up capabilities for the VMM"))?;

    let invalid = |_| LaunchError::Spawn {
        program: spec.binary.path().to_owned(),
        source: io::ErrorKind::InvalidInput.into(),
    };
    let arguments: Result<Vec<_>, _> = arguments.into_iter().map(CString::new).collect();
    let child = sys::Child {
        program: &CString::new(jail::PROGRAM).map_err(invalid)?,
        arguments: &arguments.map_err(invalid)?,
        stdio: [nothing.as_fd(), console.as_fd(), console.as_fd()],
        user: spec.jail.user.get(),
        descriptors: MAX_DESCRIPTORS,
        cgroup: cgroup.as_ref().map(File::as_fd),
        dies_with_thread: spec.dies_with_parent,
    };
    let spawned = sys::spawn(&child).map_err(|BirthError { step, source }| match step {
        BirthStep::SetUp(step) => LaunchError::SetUp { step, source },
        BirthStep::Execute => LaunchError::Spawn {
            program: spec.binary.path().to_owned(),
            source,
        },
    });
    let (pid, pidfd) = spawned?;
    let watched = match &host {
        Some(host) => match host.enter().and_then(|()| copy_pidfd(&pidfd)) {
            Ok(watched) => Some(watched),
            Err(error) => {
                end(pid, &pidfd, None);
                return Err(error);
            }
        },
        None => None,
    };
    Ok(Started {
        pid,
        pidfd,
        watched,
    })
}

/// A VMM that was started.
struct Started {
    pid: u32,
    pidfd: OwnedFd,
    /// A copy of the handle, where the calling thread must not end before the VMM does.
    watched: Option<OwnedFd>,
}

/// The namespaces that a launching thread leaves and that would outlive their VM in it.
struct HostNamespaces {
    mount: File,
    network: File,
}

impl HostNamespaces {
    fn open() -> Result<Self, LaunchError> {
        Ok(Self {
            mount: open(Path::new("/proc/thread-self/ns/mnt"))?,
            network: open(Path::new("/proc/thread-self/ns/net"))?,
        })
    }

    fn enter(&self) -> Result<(), LaunchError> {
        nix::sched::setns(&self.mount, CloneFlags::CLONE_NEWNS)
            .map_err(refused("return to the host's mount namespace"))?;
        nix::sched::setns(&self.network, CloneFlags::CLONE_NEWNET)
            .map_err(refused("return to the host's network namespace"))
    }
}

fn copy_pidfd(pidfd: &OwnedFd) -> Result<OwnedFd, LaunchError> {
    pidfd.try_clone().map_err(refused("copy a descriptor"))
}

/// Blocks the thread until the process has ended.
fn wait_for_end(process: &OwnedFd) {
    loop {
        let mut polled = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) => return,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                warn!(%error, "cannot wait for the end of a VMM, which ends with this thread");
                return;
            }
        }
    }
}

/// The jail with what every VMM has: its log, and a directory that it shares with the
/// host. All else in the sandbox's directory is the host's alone, so that a VMM cannot
/// put a link where the host reads a file.
fn with_own_files(spec: &LaunchSpec) -> Result<JailSpec, LaunchError> {
    let log = LaunchSpec::log_in(&spec.directory);
    create(&log)?;
    let shared = LaunchSpec::shared_in(&spec.directory);
    // A VMM before this one may have left files in it, and all of them are its own.
    let emptied = match std::fs::remove_dir_all(&shared) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => DirBuilder::new().mode(0o700).create(&shared),
    };
    emptied.map_err(|source| LaunchError::File {
        path: shared.clone(),
        source,
    })?;
    let mut jail = spec.jail.clone();
    jail.files.push(JailFile::writable(log, LOG));
    jail.files.push(JailFile::writable(shared, SHARED));
    Ok(jail)
}

/// What the calling thread starts will have no capability to inherit or to gain. The rest
/// goes when it changes its user.
fn give_up_capabilities() -> io::Result<()> {
    sys::empty_bounding_set()?;
    let mut sets = capabilities(None)?;
    // The ambient set is a part of the inheritable one and goes with it.
    sets.inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, sets)?)
}

/// A copy of a descriptor that is not 0, 1 or 2, whose places are to be filled.
fn above_standard(file: &File) -> Result<OwnedFd, LaunchError> {
    fcntl_dupfd_cloexec(file, 3).map_err(refused("copy a descriptor"))
}

fn refused<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> LaunchError {
    move |source| LaunchError::SetUp {
        step,
        source: source.into(),
    }
}

/// An empty file. What is written to it goes to its end, so that it can be cut short while
/// somebody writes.
fn create(path: &Path) -> Result<File, LaunchError> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|file| file.set_len(0).map(|()| file))
        .map_err(|source| LaunchError::File {
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
mod tests;
