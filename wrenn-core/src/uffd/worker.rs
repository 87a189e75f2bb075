//! The threads of a pager: those that resolve faults, and the one that goes ahead.
//!
//! Each waits on an epoll instance of its own, where the userfaultfd stands as exclusive:
//! one fault wakes one thread. A thread takes one event at a time, so that the others take
//! theirs; faults that a burst resolves on the way are taken off the queue by the kernel.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use super::fill::{Attempt, FillError, Memory, Next, Scratch};
use super::working_set::{Recorder, WorkingSet};

const EVENTS: u64 = 0;
const STOP: u64 = 1;
/// How long to let others run before the next try.
const BREATH: Duration = Duration::from_micros(50);

/// How the threads tell each other to end.
#[derive(Debug)]
pub(super) struct Ending {
    stopping: AtomicBool,
    /// Readable for ever once the pager is to end.
    bell: OwnedFd,
    failure: Mutex<Option<FillError>>,
}

impl Ending {
    pub(super) fn new() -> rustix::io::Result<Self> {
        Ok(Self {
            stopping: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            failure: Mutex::default(),
        })
    }

    pub(super) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    pub(super) fn ring(&self) {
        self.stopping.store(true, Ordering::Release);
        ring(&self.bell);
    }

    fn fail(&self, error: FillError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn into_failure(self) -> Option<FillError> {
        self.failure
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes an eventfd readable.
pub(super) fn ring(bell: &OwnedFd) {
    // A bell that cannot be rung has been rung 2⁶⁴ times.
    if let Err(error) = rustix::io::write(bell, &1u64.to_ne_bytes()) {
        tracing::debug!(%error, "cannot ring a bell");
    }
}

/// Rings when a thread ends, also if it panics.
struct RingAtEnd<'a>(&'a Ending);

impl Drop for RingAtEnd<'_> {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// A thread that resolves faults until the pager ends.
pub(super) fn resolve_faults(memory: &Memory, recorder: Option<&Recorder>, ending: &Ending) {
    let ring = RingAtEnd(ending);
    let worker = Worker {
        memory,
        recorder,
        ending,
    };
    if let Err(error) = worker.run() {
        ending.fail(error);
    }
    drop(ring);
}

struct Worker<'a> {
    memory: &'a Memory,
    recorder: Option<&'a Recorder>,
    ending: &'a Ending,
}

impl Worker<'_> {
    fn run(&self) -> Result<(), FillError> {
        let epoll = self.waiting_place().map_err(read_event)?;
        let mut scratch = Scratch::default();
        let mut events = Vec::with_capacity(2);
        while !self.ending.is_stopping() {
            events.clear();
            match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(read_event(error)),
            }
            for epoll::Event { flags, data } in events.drain(..) {
                if data.u64() != EVENTS {
                    continue;
                }
                // The kernel says so of a userfaultfd on which a read would block.
                if flags.contains(EventFlags::ERR) {
                    return Err(FillError::Unexpected("made its userfaultfd blocking"));
                }
                self.take_one(&mut scratch)?;
            }
        }
        Ok(())
    }

    fn waiting_place(&self) -> rustix::io::Result<OwnedFd> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let events = EventFlags::IN | EventFlags::EXCLUSIVE;
        let data = EventData::new_u64(EVENTS);
        epoll::add(&epoll, &self.memory.userfaultfd, data, events)?;
        let data = EventData::new_u64(STOP);
        epoll::add(&epoll, self.ending.bell(), data, EventFlags::IN)?;
        Ok(epoll)
    }

    fn take_one(&self, scratch: &mut Scratch) -> Result<(), FillError> {
        // More than one only if the mappings of the VMM change.
        let mut waiting = Vec::new();
        if let Next::Fault(address) = self.memory.next()? {
            waiting.push((address, Instant::now()));
        }
        while let Some((address, since)) = waiting.pop() {
            self.memory.busy.fetch_add(1, Ordering::Relaxed);
            let attempt = self.memory.resolve(address, self.recorder, scratch);
            self.memory.busy.fetch_sub(1, Ordering::Relaxed);
            match attempt? {
                Attempt::Done => self.memory.tally.resolved(since.elapsed()),
                Attempt::Changing => {
                    waiting.push((address, since));
                    self.let_change(&mut waiting)?;
                }
                Attempt::Gone => return Ok(()),
            }
            if self.ending.is_stopping() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads all events: the one that the VMM waits for stands behind the faults. Then it
    /// needs a moment to go on.
    fn let_change(&self, waiting: &mut Vec<(u64, Instant)>) -> Result<(), FillError> {
        loop {
            match self.memory.next()? {
                Next::Fault(address) => waiting.push((address, Instant::now())),
                Next::Handled => {}
                Next::Empty => break,
            }
        }
        std::thread::sleep(BREATH);
        Ok(())
    }
}

fn read_event(error: rustix::io::Errno) -> FillError {
    FillError::ReadEvent(error.into())
}

/// A thread that brings the working set, in the order in which it was needed. What it
/// cannot bring is left to the faults.
///
/// It stands back while as many faults are resolved as there are workers. Were one enough,
/// it would never get ahead of a VM that asks for one page after the other.
pub(super) fn prefetch(memory: &Memory, set: &WorkingSet, workers: usize, ending: &Ending) {
    let mut scratch = Scratch::default();
    for range in set.ranges() {
        let (mut at, end) = (range.offset, range.offset + range.length);
        while at < end {
            while memory.busy.load(Ordering::Relaxed) >= workers && !ending.is_stopping() {
                std::thread::sleep(BREATH);
            }
            if ending.is_stopping() {
                return;
            }
            match memory.prefetch(at, end, &mut scratch) {
                Ok((next, Attempt::Done)) => at = next,
                Ok((_, Attempt::Changing)) => std::thread::sleep(BREATH),
                Ok((_, Attempt::Gone)) => return,
                Err(error) => {
                    tracing::warn!(%error, "the working set is not prefetched any further");
                    return;
                }
            }
        }
    }
}
