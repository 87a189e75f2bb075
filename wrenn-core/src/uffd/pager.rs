//! A pager from its start to its end.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::PAGE_SIZE;
use super::counters::Counters;
use super::fill::{FillError, Memory};
use super::handshake::{Doorway, HandshakeError, Peer, Wait, timespec};
use super::source::MemorySource;
use super::worker::{self, Ending};
use super::working_set::{Recorder, WorkingSet};

/// How a pager is to work. Build one with [`PagerConfig::new`].
#[derive(Debug)]
pub struct PagerConfig {
    /// Where the VMM connects.
    pub socket: PathBuf,
    /// User and group that may connect; without, only the user that this process runs as.
    pub socket_owner: Option<(u32, u32)>,
    /// What the memory holds.
    pub source: MemorySource,
    /// How many threads resolve faults.
    pub workers: NonZeroUsize,
    /// How many bytes are brought for a fault at most, where the neighbourhood has the same
    /// origin. Rounded up to a power of two.
    pub burst: u64,
    /// How long to wait for the VMM.
    pub connect_timeout: Duration,
    /// The working set of this snapshot.
    pub working_set: Option<WorkingSetFile>,
    /// The VMM. Without, it is whoever connects.
    pub vmm: Option<OwnedFd>,
}

/// Where the working set is kept. If the file is there it is prefetched, else it is made.
#[derive(Clone, Debug)]
pub struct WorkingSetFile {
    /// The file. To make it, one is written beside it first.
    pub path: PathBuf,
    /// For how long after the resume the needs of the VM belong to it.
    pub window: Duration,
    /// Called once it has been made.
    pub recorded: Option<fn()>,
}

impl PagerConfig {
    /// Serves this source at this socket, everything else as usual: a thread for each CPU,
    /// bursts of 128 KiB, ten seconds until the VMM must have connected.
    #[must_use]
    pub fn new(socket: &Path, source: MemorySource) -> Self {
        Self {
            socket: socket.to_owned(),
            socket_owner: None,
            source,
            workers: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            burst: 32 * PAGE_SIZE,
            connect_timeout: Duration::from_secs(10),
            working_set: None,
            vmm: None,
        }
    }
}

/// Why a pager cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket cannot be made.
    #[error("cannot listen for the VMM at {path}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no event descriptor.
    #[error("cannot make an event descriptor")]
    Event(#[source] io::Error),
}

/// Why a pager ended its VM.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The VMM did not hand its memory over.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// A page could not be brought.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The kernel gives no thread or descriptor, or does not say when the VMM ends.
    #[error("cannot {step}")]
    Threads {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A bug.
    #[error("a thread of the pager panicked")]
    Panicked,
}

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    /// The VMM ended.
    Ended,
    /// [`Stopper::stop`] was called. If the VM still runs, it must be ended.
    Stopped,
    /// It could not go on, and has killed the VMM.
    Failed(ServeError),
}

/// How it ended, and what it did.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// What it did.
    pub counters: Counters,
}

/// Ends a pager from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<OwnedFd>);

impl Stopper {
    /// Makes [`Pager::serve`] return soon.
    pub fn stop(&self) {
        worker::ring(&self.0);
    }
}

/// A pager that waits for its VMM.
#[derive(Debug)]
#[must_use = "a VM hangs that is restored without its pager"]
pub struct Pager {
    doorway: Doorway,
    stop: Arc<OwnedFd>,
    source: MemorySource,
    workers: NonZeroUsize,
    burst: u64,
    connect_timeout: Duration,
    vmm: Option<OwnedFd>,
    prefetch: Option<WorkingSet>,
    recorder: Option<Recorder>,
}

impl Pager {
    /// Makes the socket. From here on a VMM can be told to load its snapshot.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn bind(config: PagerConfig) -> Result<Self, BindError> {
        let memory = config.source.length();
        let (prefetch, recorder) = match &config.working_set {
            Some(file) => open_working_set(file, memory),
            None => (None, None),
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| BindError::Event(error.into()))?;
        match Doorway::open(&config.socket, config.socket_owner) {
            Ok(doorway) => Ok(Self {
                doorway,
                stop: Arc::new(stop),
                source: config.source,
                workers: config.workers,
                burst: config.burst,
                connect_timeout: config.connect_timeout,
                vmm: config.vmm,
                prefetch,
                recorder,
            }),
            Err(source) => Err(BindError::Socket {
                path: config.socket,
                source,
            }),
        }
    }

    /// A handle to end it with.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.stop))
    }

    /// Serves until the VM ends. Blocks, and leaves no thread, descriptor or socket behind.
    #[must_use]
    pub fn serve(self) -> Report {
        let mut counters = Counters::default();
        let outcome = match self.serve_counting(&mut counters) {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(error),
        };
        Report { outcome, counters }
    }

    fn serve_counting(mut self, counters: &mut Counters) -> Result<Outcome, ServeError> {
        let wait = Wait::new(self.connect_timeout, &self.stop);
        let Some(mut peer) = self.doorway.accept(&wait)? else {
            return Ok(Outcome::Stopped);
        };
        if let Some(vmm) = self.vmm.take() {
            peer.known_as(vmm);
        }
        let served = match peer.receive(self.source.length(), &wait) {
            Ok(Some((userfaultfd, layout))) => {
                let memory = Memory::new(userfaultfd, layout, self.source, self.burst);
                let serving = Serving {
                    memory: &memory,
                    peer: &peer,
                    stop: &self.stop,
                    recorder: self.recorder.as_ref(),
                };
                let served = serving.run(self.workers, self.prefetch.as_ref());
                *counters = memory.tally.counters();
                served
            }
            Ok(None) => Ok(Outcome::Stopped),
            Err(error) => Err(error.into()),
        };
        if served.is_err()
            && let Err(error) = peer.kill()
        {
            tracing::error!(%error, "cannot kill a VMM whose memory cannot be served");
        }
        served
    }
}

/// Serves one source at one socket, see [`Pager`].
///
/// # Errors
/// If the socket cannot be made. All that happens later is in the report.
pub fn serve(config: PagerConfig) -> Result<Report, BindError> {
    Pager::bind(config).map(Pager::serve)
}

/// A VM runs without its working set too, so nothing here is an error.
fn open_working_set(file: &WorkingSetFile, memory: u64) -> (Option<WorkingSet>, Option<Recorder>) {
    match WorkingSet::load(&file.path, memory) {
        Ok(Some(set)) => return (Some(set), None),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "it is recorded anew"),
    }
    match Recorder::new(file, memory) {
        Ok(recorder) => (None, Some(recorder)),
        Err(error) => {
            tracing::warn!(%error, "the working set is not recorded");
            (None, None)
        }
    }
}

/// A pager whose VM runs.
struct Serving<'a> {
    memory: &'a Memory,
    peer: &'a Peer,
    stop: &'a OwnedFd,
    recorder: Option<&'a Recorder>,
}

impl Serving<'_> {
    fn run(
        &self,
        workers: NonZeroUsize,
        prefetch: Option<&WorkingSet>,
    ) -> Result<Outcome, ServeError> {
        let ending =
            Ending::new().map_err(|error| threads("make an event descriptor")(error.into()))?;
        let outcome = thread::scope(|scope| {
            let outcome = self.start(scope, &ending, workers, prefetch);
            let outcome = outcome.and_then(|started| {
                let watched = self.watch(&ending);
                ending.ring();
                for thread in started {
                    thread.join().map_err(|_| ServeError::Panicked)?;
                }
                watched
            });
            ending.ring();
            outcome
        });
        match ending.into_failure() {
            // What a dying VMM makes fail is no failure.
            Some(error) if !self.has_ended() => return Err(error.into()),
            _ => {}
        }
        let (outcome, still_recording) = outcome?;
        if let Some(recorder) = still_recording {
            publish(recorder);
        }
        Ok(outcome)
    }

    fn start<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        ending: &'scope Ending,
        workers: NonZeroUsize,
        prefetch: Option<&'scope WorkingSet>,
    ) -> Result<Vec<thread::ScopedJoinHandle<'scope, ()>>, ServeError> {
        let mut started = Vec::with_capacity(workers.get() + 1);
        for number in 0..workers.get() {
            let thread = thread::Builder::new()
                .name(format!("pager-{number}"))
                .spawn_scoped(scope, || {
                    worker::resolve_faults(self.memory, self.recorder, ending);
                });
            started.push(thread.map_err(threads("start a thread"))?);
        }
        if let Some(set) = prefetch {
            let thread = thread::Builder::new()
                .name("prefetch".to_owned())
                .spawn_scoped(scope, move || {
                    worker::prefetch(self.memory, set, workers.get(), ending);
                });
            started.push(thread.map_err(threads("start a thread"))?);
        }
        Ok(started)
    }

    /// Waits for the end: of the VM, of a worker, or of our caller's patience. Says too who
    /// records at that time.
    fn watch(&self, ending: &Ending) -> Result<(Outcome, Option<&Recorder>), ServeError> {
        let mut recording = self
            .recorder
            .map(|recorder| (recorder, recorder.deadline()));
        let outcome = loop {
            let left = recording
                .map(|(_, deadline)| timespec(deadline.saturating_duration_since(Instant::now())));
            let mut waited = [
                self.peer.ending(),
                PollFd::new(ending.bell(), PollFlags::IN),
                PollFd::new(self.stop, PollFlags::IN),
            ];
            match poll(&mut waited, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(threads("wait for the VMM's end")(error.into())),
            }
            let [ended, worker_ended, stopped] = waited.map(|waited| !waited.revents().is_empty());
            if ended || worker_ended {
                break Outcome::Ended;
            }
            if stopped {
                break Outcome::Stopped;
            }
            if let Some((recorder, deadline)) = recording
                && deadline <= Instant::now()
            {
                publish(recorder);
                recording = None;
            }
        };
        Ok((outcome, recording.map(|(recorder, _)| recorder)))
    }

    fn has_ended(&self) -> bool {
        let mut waited = [self.peer.ending()];
        let now = timespec(Duration::ZERO);
        poll(&mut waited, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

fn publish(recorder: &Recorder) {
    match recorder.publish() {
        Ok(set) if set.ranges().is_empty() => {}
        Ok(set) => {
            tracing::debug!(
                ranges = set.ranges().len(),
                bytes = set.bytes(),
                "recorded the working set"
            );
            recorder.tell();
        }
        Err(error) => tracing::warn!(%error, "the working set is not kept"),
    }
}

fn threads(step: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::Threads { step, source }
}
