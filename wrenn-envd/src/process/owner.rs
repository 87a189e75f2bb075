//! The owner of one process: the task that waits for it and everything that others may
//! do to it.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::End;
use super::hub::{Follower, Hub, Offsets};
use super::launch::{Input, LaunchError, Launched, Order, launch};
use super::pump::{Pump, Rest};
use super::signal;
use super::stdio::{self, TerminalSize};
use crate::guest::Guest;
use crate::sys::polled::Polled;
use crate::users::User;

/// How long an ended process can still be connected to.
pub const RETENTION: Duration = Duration::from_secs(30);

/// One process that was started here.
pub struct Process {
    pub pid: u32,
    pub order: Order,
    hub: Arc<Hub>,
    input: tokio::sync::Mutex<Input>,
    /// `None` once the process was reaped: from then on its number may be another's.
    /// Whoever signals holds the lock, so that it isn't reaped meanwhile.
    child: Mutex<Option<Child>>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("the process was started without stdin, or it was closed")]
    Closed,
    #[error("the process has a terminal: send it pty input")]
    IsTerminal,
    #[error("the process has no terminal: send it stdin input")]
    IsPipe,
    #[error("a terminal's input can't be closed; send Ctrl-D (0x04) instead")]
    TerminalStaysOpen,
    #[error("the process no longer reads its input")]
    NotRead,
    #[error("cannot write to the process's input")]
    Write(#[source] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    #[error("the process has ended")]
    Ended,
    #[error("cannot send the signal")]
    Send(#[source] io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    Stdin,
    Pty,
}

impl Process {
    /// Starts a process, followed from its first byte on. If `deadline` passes before
    /// it has ended, it is killed, whoever follows it then.
    pub fn start(
        guest: &Arc<Guest>,
        order: Order,
        user: &User,
        deadline: Option<Instant>,
    ) -> Result<(Arc<Self>, Follower), LaunchError> {
        let Launched {
            mut child,
            input,
            outputs,
        } = launch(&order, user, &guest.settings())?;
        let pid = child.id();
        let exit_notice = Pid::from_raw(pid.cast_signed())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
            .and_then(|pid| Polled::new(pidfd_open(pid, PidfdFlags::NONBLOCK)?));
        let exit_notice = match exit_notice {
            Ok(notice) => notice,
            Err(source) => {
                // Without the notice its end would never be known.
                child.kill().and_then(|()| child.wait()).ok();
                return Err(LaunchError::Spawn {
                    command: order.command,
                    source,
                });
            }
        };
        let hub = Hub::new(guest.processes.budget(), guest.grace.reconnect);
        let follower = hub.follow(None);
        let process = Arc::new(Self {
            pid,
            order,
            hub,
            input: tokio::sync::Mutex::new(input),
            child: Mutex::new(Some(child)),
        });
        guest.processes.insert(Arc::clone(&process));
        guest.tasks.spawn(own(
            Arc::clone(guest),
            Arc::clone(&process),
            exit_notice,
            outputs,
            deadline,
        ));
        Ok((process, follower))
    }

    /// Follows from what nobody was sent so far, or from where a client left off.
    pub fn follow(&self, from: Option<Offsets>) -> Follower {
        self.hub.follow(from)
    }

    pub fn is_running(&self) -> bool {
        self.child().is_some()
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn leader(&self) -> Option<Pid> {
        Pid::from_raw(self.pid.cast_signed())
    }

    /// Signals the process and its group.
    pub fn signal(&self, signal: Signal) -> Result<(), SignalError> {
        // The lock keeps the number from being reused while it is signalled.
        let child = self.child();
        match (child.as_ref(), self.leader()) {
            (Some(_), Some(leader)) => signal::send(leader, signal).map_err(SignalError::Send),
            _ => Err(SignalError::Ended),
        }
    }

    /// Asks the process and its group to end.
    fn terminate(&self) {
        self.signal(Signal::TERM).ok();
        if self.order.terminal.is_some() {
            // Interactive shells ignore SIGTERM.
            self.signal(Signal::HUP).ok();
        }
    }

    /// Writes input; returns when the process's pipe or terminal has taken all of it.
    pub async fn write(&self, kind: InputKind, bytes: &[u8]) -> Result<(), InputError> {
        let input = self.input.lock().await;
        let end = match (&*input, kind) {
            (Input::Pipe(end), InputKind::Stdin) | (Input::Terminal(end), InputKind::Pty) => end,
            (Input::Pipe(_), InputKind::Pty) => return Err(InputError::IsPipe),
            (Input::Terminal(_), InputKind::Stdin) => return Err(InputError::IsTerminal),
            (Input::None, _) => return Err(InputError::Closed),
        };
        end.write_all(bytes)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::BrokenPipe => InputError::NotRead,
                _ if source.raw_os_error() == Some(libc::EIO) => InputError::NotRead,
                _ => InputError::Write(source),
            })
    }

    /// The process reads end of file after everything that was written before.
    pub async fn close_input(&self) -> Result<(), InputError> {
        let mut input = self.input.lock().await;
        match &*input {
            Input::Terminal(_) => Err(InputError::TerminalStaysOpen),
            Input::None => Err(InputError::Closed),
            Input::Pipe(_) => {
                *input = Input::None;
                Ok(())
            }
        }
    }

    pub async fn resize(&self, size: TerminalSize) -> Result<(), InputError> {
        match &*self.input.lock().await {
            Input::Terminal(master) => stdio::resize(master, size).map_err(InputError::Write),
            Input::Pipe(_) | Input::None => Err(InputError::IsPipe),
        }
    }

    /// Takes the exit status, if there is one. From here on the number is free.
    fn reap(&self) -> io::Result<Option<ExitStatus>> {
        let mut child = self.child();
        let status = match child.as_mut() {
            Some(child) => child.try_wait()?,
            None => None,
        };
        if status.is_some() {
            *child = None;
        }
        Ok(status)
    }
}

/// Waits for the process, carries its outputs, announces its end, and keeps it around
/// for those who connect late.
async fn own(
    guest: Arc<Guest>,
    process: Arc<Process>,
    exit_notice: Polled,
    outputs: Vec<Pump>,
    deadline: Option<Instant>,
) {
    let exited = CancellationToken::new();
    let pumps = futures::future::join_all(
        outputs
            .into_iter()
            .map(|output| output.run(&process.hub, &exited, guest.grace.linger)),
    );
    let wait = async {
        let end = wait(&guest, &process, &exit_notice, deadline).await;
        exited.cancel();
        end
    };
    let (end, rests) = tokio::join!(wait, pumps);
    drop(exit_notice);
    process.hub.finish(end);
    // Nobody is left to read input. A write that is stuck fails by itself then.
    if let Ok(mut input) = process.input.try_lock() {
        *input = Input::None;
    }

    for rest in rests {
        if let Rest::Open(pump) = rest {
            guest.tasks.spawn({
                let shutdown = guest.shutdown.clone();
                async move { shutdown.run_until_cancelled(pump.discard()).await }
            });
        }
    }
    guest
        .shutdown
        .run_until_cancelled(tokio::time::sleep(RETENTION))
        .await;
    guest.processes.remove(&process);
}

async fn wait(
    guest: &Guest,
    process: &Process,
    exit_notice: &Polled,
    deadline: Option<Instant>,
) -> End {
    let mut deadline = deadline;
    let is_held = process.order.terminate_on_disconnect;
    let mut killed_by_deadline = false;
    let mut shutting_down = false;
    let mut is_terminated = false;
    let mut kill_at = None;
    loop {
        tokio::select! {
            ready = exit_notice.readable() => {
                if is_terminated {
                    // Its children have no client either. Once it is reaped, its number may be
                    // another's.
                    process.signal(Signal::KILL).ok();
                }
                match process.reap() {
                    Ok(Some(status)) => return End { status, deadline: killed_by_deadline },
                    // Readable and not dead: another thread of it is still leaving.
                    Ok(None) => if let Ok(mut guard) = ready { guard.clear_ready() },
                    Err(error) => {
                        tracing::error!(pid = process.pid, %error, "cannot wait for a process");
                        *process.child() = None;
                        return End { status: ExitStatus::default(), deadline: killed_by_deadline };
                    }
                }
            }
            () = reached(deadline) => {
                deadline = None;
                killed_by_deadline = process.signal(Signal::KILL).is_ok();
            }
            () = process.hub.abandoned(), if is_held && !is_terminated => {
                is_terminated = true;
                kill_at = Some(Instant::now() + guest.grace.termination);
                tracing::info!(pid = process.pid, "terminated a process whose client is gone");
                process.terminate();
            }
            () = reached(kill_at) => {
                kill_at = None;
                process.signal(Signal::KILL).ok();
            }
            () = guest.shutdown.cancelled(), if !shutting_down => {
                shutting_down = true;
                process.signal(Signal::KILL).ok();
            }
        }
    }
}

/// Waits until this time; for ever where there is none.
async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
