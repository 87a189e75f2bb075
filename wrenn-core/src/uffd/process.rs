//! A pager in a process of its own, watched by whoever owns the VM.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use super::program::{ProgramConfig, ProgramReport, RECORDED};
use crate::SandboxId;
use crate::process::{ProcessIdentity, set_oom_score};
use crate::vm::{ExitReason, await_pidfd};

/// Why a pager is not there.
#[derive(Debug, thiserror::Error)]
pub enum LaunchPagerError {
    /// Its log cannot be made.
    #[error("cannot make the pager's log {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not start.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ends before the VMM can connect.
    #[error("the pager did not start: {said}")]
    NotReady {
        /// The last lines of its log.
        said: String,
    },
}

/// How a pager ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagerExit {
    /// How its process ended.
    pub reason: ExitReason,
    /// What it said, unless it was killed.
    pub report: Option<ProgramReport>,
}

/// A pager that runs. It ends when its VM does, so dropping this does nothing to it: a VM
/// can outlive whoever started it.
#[derive(Debug)]
pub struct PagerProcess {
    pid: u32,
    kill: Arc<Notify>,
    recorded: watch::Receiver<bool>,
    exit: watch::Receiver<Option<PagerExit>>,
}

impl PagerProcess {
    /// Starts the program and waits until a VMM can connect. As its own name it is told
    /// `name`, a path by which a sweep knows whose it is.
    ///
    /// # Errors
    /// If it does not start, or cannot serve this memory.
    ///
    /// # Cancel safety
    /// A pager whose launch is dropped goes by itself when no VMM connects.
    pub async fn launch(
        program: &Path,
        name: &Path,
        id: &SandboxId,
        config: &ProgramConfig,
        log: &Path,
    ) -> Result<Self, LaunchPagerError> {
        let file = File::create(log).map_err(|source| LaunchPagerError::Log {
            path: log.to_owned(),
            source,
        })?;
        let spawn_error = |source| LaunchPagerError::Spawn {
            program: program.to_owned(),
            source,
        };
        let mut child = Command::new(program)
            .arg0(name)
            .args(["--id", id.as_str()])
            .env_clear()
            // Ctrl-C at a terminal reaches this program's group; the pager is not to hear it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .map_err(spawn_error)?;
        if let Some(pid) = child.id() {
            set_oom_score(pid);
        }
        let json = serde_json::to_vec(config).map_err(|error| spawn_error(error.into()))?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(spawn_error(io::ErrorKind::BrokenPipe.into()));
        };
        // One that has ended already says why in its log.
        if let Err(error) = input.write_all(&json).await {
            debug!(%error, "the pager does not read its configuration");
        }
        drop(input);
        let mut lines = BufReader::new(output).lines();
        if !matches!(lines.next_line().await, Ok(Some(_))) {
            if let Err(error) = child.kill().await {
                warn!(%error, "cannot kill a pager that did not start");
            }
            let said = std::fs::read_to_string(log).unwrap_or_default();
            let said = said.trim().to_owned();
            return Err(LaunchPagerError::NotReady { said });
        }
        Ok(Self::watch(child, lines))
    }

    fn watch(child: Child, lines: Lines<BufReader<ChildStdout>>) -> Self {
        let pid = child.id().unwrap_or(0);
        Self::await_end(pid, |kill, recorded| async move {
            follow(child, lines, &kill, &recorded).await
        })
    }

    /// Takes over a pager that another program started; `None` where it has ended. What it
    /// says at its end, only that program would have heard.
    ///
    /// # Errors
    /// When the kernel cannot watch it.
    pub fn adopt(identity: &ProcessIdentity) -> io::Result<Option<Self>> {
        let Some(process) = identity.open()? else {
            return Ok(None);
        };
        let process = await_pidfd(Arc::new(OwnedFd::from(process)))?;
        let pid = identity.pid.cast_unsigned();
        Ok(Some(Self::await_end(pid, |kill, _| async move {
            await_end_of(&process, &kill).await
        })))
    }

    fn await_end<F: Future<Output = PagerExit> + Send + 'static>(
        pid: u32,
        ended: impl FnOnce(Arc<Notify>, watch::Sender<bool>) -> F,
    ) -> Self {
        let kill = Arc::new(Notify::new());
        let (tell_exit, exit) = watch::channel(None);
        let (tell_recorded, recorded) = watch::channel(false);
        let ended = ended(Arc::clone(&kill), tell_recorded);
        tokio::spawn(async move {
            let exit = ended.await;
            debug!(?exit, "a pager ended");
            tell_exit.send_replace(Some(exit));
        });
        Self {
            pid,
            kill,
            recorded,
            exit,
        }
    }

    /// The process, by a name that a later program finds it by.
    ///
    /// # Errors
    /// When it has ended.
    pub fn identity(&self) -> io::Result<ProcessIdentity> {
        ProcessIdentity::of(self.pid.cast_signed())
    }

    /// Waits until it has made the file of the working set. False where it ends without.
    pub fn recorded(&self) -> impl Future<Output = bool> + Send + use<> {
        let mut recorded = self.recorded.clone();
        async move { recorded.wait_for(|recorded| *recorded).await.is_ok() }
    }

    /// The process id, as this host sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process has ended. May be called often and by many. Unless its VMM
    /// has ended, that must be ended too: it waits for pages that nobody brings.
    pub async fn exited(&self) -> PagerExit {
        let unknown = PagerExit {
            reason: ExitReason::Unknown,
            report: None,
        };
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(unknown),
            Err(_) => unknown,
        }
    }

    /// Kills the process and waits until it is gone. The VMM comes first.
    pub async fn kill(&self) -> PagerExit {
        self.kill.notify_one();
        self.exited().await
    }
}

async fn follow(
    mut child: Child,
    mut lines: Lines<BufReader<ChildStdout>>,
    kill: &Notify,
    recorded: &watch::Sender<bool>,
) -> PagerExit {
    let mut report = None;
    let mut listening = true;
    loop {
        tokio::select! {
            line = lines.next_line(), if listening => match line {
                Ok(Some(line)) if line == RECORDED => {
                    recorded.send_replace(true);
                }
                Ok(Some(line)) => report = serde_json::from_str(&line).ok().or(report),
                _ => listening = false,
            },
            status = child.wait(), if !listening => {
                let reason = status.map_or(ExitReason::Unknown, ExitReason::from);
                return PagerExit { reason, report };
            }
            () = kill.notified() => {
                if let Err(error) = child.start_kill() {
                    warn!(%error, "cannot kill a pager");
                }
            }
        }
    }
}

/// Of one that is no child of ours.
async fn await_end_of(process: &AsyncFd<Arc<OwnedFd>>, kill: &Notify) -> PagerExit {
    loop {
        tokio::select! {
            ended = process.readable() => {
                if let Err(error) = ended {
                    warn!(%error, "lost sight of a pager");
                }
                return PagerExit { reason: ExitReason::Unknown, report: None };
            }
            () = kill.notified() => {
                let killed = pidfd_send_signal(process.get_ref(), Signal::KILL);
                if let Err(error) = killed && error != Errno::SRCH {
                    warn!(%error, "cannot kill a pager");
                }
            }
        }
    }
}
