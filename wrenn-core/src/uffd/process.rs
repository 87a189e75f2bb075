//! A pager in a process of its own, watched by whoever owns the VM.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use super::program::{ProgramConfig, ProgramReport};
use crate::SandboxId;
use crate::vm::ExitReason;

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
    exit: watch::Receiver<Option<PagerExit>>,
}

impl PagerProcess {
    /// Starts the program, with `arguments` before its own for one that contains it, and
    /// waits until a VMM can connect.
    ///
    /// # Errors
    /// If it does not start, or cannot serve this memory.
    ///
    /// # Cancel safety
    /// A pager whose launch is dropped goes by itself when no VMM connects.
    pub async fn launch(
        program: &Path,
        arguments: &[&str],
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
            .args(arguments)
            .args(["--id", id.as_str()])
            .env_clear()
            // Ctrl-C at a terminal reaches this program's group; the pager is not to hear it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .map_err(spawn_error)?;
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
        let kill = Arc::new(Notify::new());
        let (sender, exit) = watch::channel(None);
        let this = Self {
            pid: child.id().unwrap_or(0),
            kill: Arc::clone(&kill),
            exit,
        };
        tokio::spawn(async move {
            let exit = follow(child, lines, &kill).await;
            debug!(?exit, "a pager ended");
            sender.send_replace(Some(exit));
        });
        this
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
) -> PagerExit {
    let mut report = None;
    let mut listening = true;
    loop {
        tokio::select! {
            line = lines.next_line(), if listening => match line {
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
