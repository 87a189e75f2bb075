//! One thread for each vCPU.
//!
//! ```text
//!            Resume                    reset, power-off, failure
//! Paused ◀──────────▶ Running ────────────────────────────────────▶ Stopped
//!            Pause
//! ```
//!
//! A vCPU starts paused. Requests come through a channel and are answered through
//! another; a running vCPU is kicked out of the guest to look (`sys::kick`). A paused one
//! can be asked for its registers.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::eventfd::EventFd;

use crate::cpu::state::{VcpuState, VcpuStateError};
use crate::devices::bus::Bus;
use crate::metrics::METRICS;
use crate::seccomp::{Filter, FilterError};
use crate::sys::kick::{self, ImmediateExit};

/// How long an answer may take. A vCPU answers between two exits, so this only passes
/// when the host is broken; under emulation on a busy host it still takes no second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// By which a reply is told from that to an earlier request, whose asker has given up waiting.
type Number = u64;

/// What a vCPU can be asked.
#[derive(Debug)]
enum Request {
    Pause,
    Resume,
    /// Read the registers, these model-specific ones among them.
    Save(Arc<[u32]>),
}

/// What a vCPU answers.
#[derive(Debug)]
enum Reply {
    Done,
    Saved(Box<Result<VcpuState, VcpuStateError>>),
}

/// Where a vCPU sees its world.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory without RAM behind it.
    pub memory: Arc<Bus>,
}

/// A vCPU did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// Its thread has ended.
    #[error("vCPU {index} has stopped")]
    Stopped {
        /// Which.
        index: u8,
    },
    /// It does not answer.
    #[error("vCPU {index} does not answer")]
    Silent {
        /// Which.
        index: u8,
    },
    /// It runs, or has stopped for good.
    #[error("the registers of vCPU {index} can only be saved while it is paused")]
    NotPaused {
        /// Which.
        index: u8,
    },
    /// Its registers cannot be read.
    #[error("cannot save vCPU {index}")]
    Save {
        /// Which.
        index: u8,
        /// Why.
        #[source]
        source: VcpuStateError,
    },
    /// No thread.
    #[error("cannot start the thread of vCPU {index}")]
    Spawn {
        /// Which.
        index: u8,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why a vCPU stopped by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// The guest wanted it.
    ByGuest,
    /// It cannot go on.
    Failed,
}

/// The handle of a vCPU thread. Dropping it stops the thread and waits for its end, so
/// that guest memory may go after all handles have gone.
#[derive(Debug)]
pub struct Vcpu {
    index: u8,
    calls: Calls,
    immediate_exit: ImmediateExit,
    /// `None` only while being dropped. The thread's result keeps the vCPU open until it
    /// is joined, and with it the page that `immediate_exit` points into.
    thread: Option<JoinHandle<VcpuFd>>,
}

/// Events by which vCPU threads tell the main thread that the machine is over.
pub struct EndEvents {
    /// The guest reset or powered off.
    pub finished: EventFd,
    /// A vCPU cannot go on.
    pub failed: EventFd,
}

impl EndEvents {
    /// Another handle on the same events.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            finished: self.finished.try_clone()?,
            failed: self.failed.try_clone()?,
        })
    }
}

impl Vcpu {
    /// Starts the thread of a vCPU that is set up, paused.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub fn spawn(
        index: u8,
        mut fd: VcpuFd,
        buses: Buses,
        ends: EndEvents,
        filter: Arc<Filter>,
    ) -> Result<Self, VcpuError> {
        let immediate_exit = ImmediateExit::of(&mut fd);
        let (requests, request_receiver) = channel();
        let (answer_sender, answers) = channel();
        let mut runner = Runner {
            index,
            fd,
            buses,
            immediate_exit,
            requests: request_receiver,
            answers: answer_sender,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(256 << 10)
            .spawn(move || {
                match filter.apply() {
                    Ok(()) => runner.report(&ends),
                    Err(error) => refuse(index, &error, &ends),
                }
                runner.fd
            })
            .map_err(|source| VcpuError::Spawn { index, source })?;
        Ok(Self {
            index,
            calls: Calls::new(requests, answers),
            immediate_exit,
            thread: Some(thread),
        })
    }

    fn send(&self, request: Request) -> Result<(), VcpuError> {
        if !self.calls.send(request) {
            return Err(VcpuError::Stopped { index: self.index });
        }
        self.kick();
        Ok(())
    }

    /// Has the thread look into its channel.
    fn kick(&self) {
        if let Some(thread) = &self.thread {
            self.immediate_exit.set();
            kick::signal(thread);
        }
    }

    fn wait(&self, deadline: Instant) -> Result<Reply, VcpuError> {
        let index = self.index;
        self.calls.wait(deadline).map_err(|error| match error {
            RecvTimeoutError::Timeout => VcpuError::Silent { index },
            RecvTimeoutError::Disconnected => VcpuError::Stopped { index },
        })
    }
}

/// The channels to a vCPU thread, by which one asks after another.
#[derive(Debug)]
struct Calls {
    /// `None` once the thread is to end.
    requests: Option<Sender<(Number, Request)>>,
    answers: Receiver<(Number, Reply)>,
    /// Of the last request.
    number: Cell<Number>,
}

impl Calls {
    const fn new(requests: Sender<(Number, Request)>, answers: Receiver<(Number, Reply)>) -> Self {
        Self {
            requests: Some(requests),
            answers,
            number: Cell::new(0),
        }
    }

    /// Sends a request; says whether there is a thread to receive it.
    fn send(&self, request: Request) -> bool {
        let number = self.number.get() + 1;
        self.number.set(number);
        self.requests
            .as_ref()
            .is_some_and(|requests| requests.send((number, request)).is_ok())
    }

    /// Waits for the reply to the last request, and drops those to earlier ones.
    fn wait(&self, deadline: Instant) -> Result<Reply, RecvTimeoutError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (number, reply) = self.answers.recv_timeout(left)?;
            if number == self.number.get() {
                return Ok(reply);
            }
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // A closed channel is the request to end.
        self.calls.requests = None;
        self.kick();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("vCPU {} has panicked", self.index);
        }
    }
}

/// Stops all vCPUs between two instructions: first asks all, then waits for all.
///
/// # Errors
/// If one has stopped for good or does not answer. Then all are to go on: one that answers late
/// stops for a moment at most.
pub fn pause_all(vcpus: &[Vcpu]) -> Result<(), VcpuError> {
    ask_all(vcpus, || Request::Pause).inspect_err(|_| {
        for vcpu in vcpus {
            // One that has stopped for good needs nothing.
            vcpu.send(Request::Resume).ok();
        }
    })
}

/// Lets all vCPUs go on.
///
/// # Errors
/// If one has stopped for good or does not answer.
pub fn resume_all(vcpus: &[Vcpu]) -> Result<(), VcpuError> {
    ask_all(vcpus, || Request::Resume)
}

fn ask_all(vcpus: &[Vcpu], request: impl Fn() -> Request) -> Result<(), VcpuError> {
    for vcpu in vcpus {
        vcpu.send(request())?;
    }
    let deadline = Instant::now() + ANSWER_DEADLINE;
    vcpus
        .iter()
        .try_for_each(|vcpu| vcpu.wait(deadline).map(drop))
}

/// Reads the registers of all vCPUs, which must be paused.
///
/// # Errors
/// If one is not paused, or KVM does not tell its registers.
pub fn save_all(vcpus: &[Vcpu], msrs: &Arc<[u32]>) -> Result<Vec<VcpuState>, VcpuError> {
    for vcpu in vcpus {
        vcpu.send(Request::Save(msrs.clone()))?;
    }
    let deadline = Instant::now() + ANSWER_DEADLINE;
    let reply = |vcpu: &Vcpu| (vcpu.index, vcpu.wait(deadline));
    let replies: Vec<_> = vcpus.iter().map(reply).collect();
    replies
        .into_iter()
        .map(|(index, reply)| match reply? {
            Reply::Saved(state) => state.map_err(|source| VcpuError::Save { index, source }),
            Reply::Done => Err(VcpuError::NotPaused { index }),
        })
        .collect()
}

fn refuse(index: u8, error: &FilterError, ends: &EndEvents) {
    log::error!("vCPU {index} cannot apply its seccomp filter: {error}");
    if let Err(error) = ends.failed.write(1) {
        log::error!("cannot report that: {error}");
    }
}

struct Runner {
    index: u8,
    fd: VcpuFd,
    buses: Buses,
    immediate_exit: ImmediateExit,
    requests: Receiver<(Number, Request)>,
    answers: Sender<(Number, Reply)>,
}

impl Runner {
    fn report(&mut self, ends: &EndEvents) {
        let event = match self.run() {
            None => return,
            Some(Stopped::ByGuest) => &ends.finished,
            Some(Stopped::Failed) => &ends.failed,
        };
        if let Err(error) = event.write(1) {
            log::error!("vCPU {} cannot report its end: {error}", self.index);
        }
        // The channel stays open, since requests to a machine that ends may still come.
        while let Ok((number, _request)) = self.requests.recv() {
            if self.answers.send((number, Reply::Done)).is_err() {
                break;
            }
        }
    }

    /// Runs until the guest stops, or nobody is there any more to ask.
    fn run(&mut self) -> Option<Stopped> {
        loop {
            // Paused.
            let number = match self.requests.recv() {
                Ok((number, Request::Resume)) => number,
                Ok((number, Request::Pause)) => {
                    self.answers.send((number, Reply::Done)).ok()?;
                    continue;
                }
                Ok((number, Request::Save(msrs))) => {
                    let state = Box::new(VcpuState::save(&self.fd, &msrs));
                    self.answers.send((number, Reply::Saved(state))).ok()?;
                    continue;
                }
                Err(_) => return None,
            };
            self.immediate_exit.clear();
            self.answers.send((number, Reply::Done)).ok()?;
            // Running.
            loop {
                match self.enter_guest() {
                    Entered::Exit => {}
                    Entered::Stopped(stopped) => return Some(stopped),
                    Entered::Interrupted => {
                        // Cleared before the look into the channel (see `sys::kick`).
                        self.immediate_exit.clear();
                        match self.requests.try_recv() {
                            Ok((number, Request::Pause)) => {
                                self.finish_exit();
                                self.answers.send((number, Reply::Done)).ok()?;
                                break;
                            }
                            Ok((number, Request::Resume | Request::Save(_))) => {
                                self.answers.send((number, Reply::Done)).ok()?;
                            }
                            Err(TryRecvError::Empty) => {}
                            Err(TryRecvError::Disconnected) => return None,
                        }
                    }
                }
            }
        }
    }

    /// KVM finishes an exit (say, puts the value that was read into its register) on the
    /// next entry. One entry that returns at once does that, so that the registers are
    /// whole when they are saved.
    fn finish_exit(&mut self) {
        // Keeps the guest's watchdogs from seeing the pause as a lock-up. It fails in
        // guests that do not use KVM's clock, which then have to cope.
        if let Err(error) = self.fd.kvmclock_ctrl() {
            log::debug!("vCPU {}: KVM_KVMCLOCK_CTRL: {error}", self.index);
        }
        self.immediate_exit.set();
        if let Err(error) = self.fd.run()
            && !matches!(error.errno(), libc::EINTR | libc::EAGAIN)
        {
            log::warn!("vCPU {}: {error}", self.index);
        }
        self.immediate_exit.clear();
    }

    fn enter_guest(&mut self) -> Entered {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) => {
                return match error.errno() {
                    libc::EINTR | libc::EAGAIN => Entered::Interrupted,
                    _ => {
                        log::error!("vCPU {} cannot run: {error}", self.index);
                        Entered::Stopped(Stopped::Failed)
                    }
                };
            }
        };
        match exit {
            VcpuExit::IoIn(port, data) => {
                METRICS.vcpu.port_reads.add(1);
                self.buses.ports.read(u64::from(port), data);
            }
            VcpuExit::IoOut(port, data) => {
                METRICS.vcpu.port_writes.add(1);
                self.buses.ports.write(u64::from(port), data);
            }
            VcpuExit::MmioRead(address, data) => {
                METRICS.vcpu.memory_reads.add(1);
                self.buses.memory.read(address, data);
            }
            VcpuExit::MmioWrite(address, data) => {
                METRICS.vcpu.memory_writes.add(1);
                self.buses.memory.write(address, data);
            }
            VcpuExit::Intr => return Entered::Interrupted,
            VcpuExit::Shutdown | VcpuExit::Hlt => {
                log::info!("vCPU {}: the guest shut down", self.index);
                return Entered::Stopped(Stopped::ByGuest);
            }
            VcpuExit::SystemEvent(kind, _) => return self.system_event(kind),
            VcpuExit::FailEntry(reason, cpu) => {
                log::error!(
                    "vCPU {}: the processor refuses to enter the guest: {reason:#x} on CPU {cpu}",
                    self.index
                );
                return Entered::Stopped(Stopped::Failed);
            }
            other => {
                log::error!("vCPU {}: unexpected exit {other:?}", self.index);
                return Entered::Stopped(Stopped::Failed);
            }
        }
        Entered::Exit
    }

    fn system_event(&self, kind: u32) -> Entered {
        let by_guest = [
            kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN,
            kvm_bindings::KVM_SYSTEM_EVENT_RESET,
        ];
        if by_guest.contains(&kind) {
            return Entered::Stopped(Stopped::ByGuest);
        }
        log::error!("vCPU {}: system event {kind}", self.index);
        Entered::Stopped(Stopped::Failed)
    }
}

enum Entered {
    Exit,
    Interrupted,
    Stopped(Stopped),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_reply_is_not_for_later_request() {
        let (request_sender, requests) = channel();
        let (answers, answer_receiver) = channel();
        let calls = Calls::new(request_sender, answer_receiver);
        assert!(calls.send(Request::Pause));
        let (first, _) = requests.recv().unwrap();
        let given_up = calls.wait(Instant::now());
        assert!(matches!(given_up, Err(RecvTimeoutError::Timeout)));

        // The asker gives up, and the answer comes before that to the next request.
        answers.send((first, Reply::Done)).unwrap();
        assert!(calls.send(Request::Save(Arc::default())));
        let (second, _) = requests.recv().unwrap();
        let refused = VcpuStateError::List("registers");
        let saved = Reply::Saved(Box::new(Err(refused)));
        answers.send((second, saved)).unwrap();
        let reply = calls.wait(Instant::now() + ANSWER_DEADLINE).unwrap();
        assert!(matches!(reply, Reply::Saved(_)), "{reply:?}");

        drop(requests);
        assert!(!calls.send(Request::Pause));
    }
}
