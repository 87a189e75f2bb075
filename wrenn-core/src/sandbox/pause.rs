//! From a running sandbox to one that lies on disk.
//!
//! ```text
//! running ─▶ captured, VM stopped ─▶ build published ─▶ written down ─▶ VM gone, disk, slot
//!                  │                       │                                    │
//!            VM resumed ◀── a step before failed                             paused
//! ```
//!
//! A build holds memory and disk of the same moment, and neither changes afterwards: what
//! resumes works on a copy of the disk. So whatever fails later, the pair is still there.
//! Until the build is published the VM can go on, and if the record cannot be written
//! afterwards, it does.
//!
//! A [snapshot](Sandbox::freeze) is the first half of a pause. The VM goes on as soon as
//! its memory is in a file, and the build is published meanwhile.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::capture::{CaptureError, CaptureTimings};
use super::directory::SandboxDirectory;
use super::disk::RootDisk;
use super::frozen::Frozen;
use super::paused::Paused;
use super::record::RecordError;
use super::{Keep, Remains, Sandbox, State, memory, prepare};
use crate::vm::LaunchSpec;
use crate::{Chain, blocking, crash};

/// How long a guest may take to thaw its programs before it is asked again.
const THAW_DEADLINE: Duration = Duration::from_secs(5);
/// The shortest and the longest pause between two requests to thaw.
const FIRST_THAW_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_THAW_PAUSE: Duration = Duration::from_secs(30);

/// Why a sandbox was not paused.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// It is one that does not outlive its owner.
    #[error("only a sandbox that is kept until it is destroyed can be paused")]
    NotKept,
    /// It could not be brought to the disk.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// It could not be written down that it is paused.
    #[error("cannot write down that it is paused")]
    Record(#[from] RecordError),
}

/// A pause or a snapshot that failed, and what the sandbox is now.
#[derive(Debug)]
pub struct FailedPause<S = Sandbox> {
    /// Why.
    pub error: PauseError,
    /// What is left: it runs as before, unless its VM could not go on.
    pub left: AfterPause<S>,
}

/// What a failed pause leaves.
#[derive(Debug)]
pub enum AfterPause<S = Sandbox> {
    /// It goes on as before.
    Running(Box<S>),
    /// Its VM is lost. Its data is there.
    Broken(Box<Remains>),
}

/// Why a sandbox is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseReason {
    /// Somebody wants it.
    Asked,
    /// It was idle for longer than it may be. That is remembered until somebody
    /// [acknowledges](Paused::acknowledge) it.
    Idle,
}

/// How long each step of a pause took.
#[derive(Clone, Copy, Debug, Default)]
pub struct PauseTimings {
    /// Bringing it to the disk.
    pub capture: CaptureTimings,
    /// For how long the guest stood still, where it goes on afterwards.
    pub stopped: Duration,
    /// Giving back what it had.
    pub release: Duration,
    /// All of it.
    pub total: Duration,
}

impl Sandbox {
    /// Writes memory and disk down, and gives back everything else. A sandbox that was
    /// resumed before only writes what changed since.
    ///
    /// # Errors
    /// When a step fails; the error says what the sandbox is then.
    ///
    /// # Cancel safety
    /// A sandbox whose pause is dropped is lost, unless it was paused already. To be run on
    /// a task of its own.
    pub async fn pause(mut self, reason: PauseReason) -> Result<Paused, FailedPause> {
        let begun = Instant::now();
        let mut timings = PauseTimings::default();
        if self.record.keep != Keep::UntilDestroyed {
            return Err(FailedPause {
                error: PauseError::NotKept,
                left: AfterPause::Running(Box::new(self)),
            });
        }
        let captured = async {
            let captured = self.capture(&mut timings.capture).await?;
            captured.publish(&mut timings.capture).await
        };
        let build = match captured.await {
            Ok(build) => build,
            Err(error) => return Err(self.go_on(error.into()).await),
        };
        crash::point("pause.published");
        let before = self.record.clone();
        self.record.state = State::Paused;
        self.record.reason.clone_from(&self.halted);
        self.record.build = Some(build.id().clone());
        self.record.auto_paused = reason == PauseReason::Idle;
        if let Err(error) = self.record.write(self.directory.path()) {
            self.record = before;
            return Err(self.go_on(error.into()).await);
        }
        // From here on it is paused, whatever becomes of this program.
        self.directory.keep();
        crash::point("pause.recorded");
        let release = Instant::now();
        let Self {
            vm,
            pager,
            disk,
            slot,
            directory,
            mut record,
            host,
            ..
        } = self;
        vm.kill().await;
        memory::end(pager).await;
        crash::point("pause.ended");
        prepare::give_back(Some(disk), Some(slot)).await;
        clear(&directory);
        (record.vmm, record.pager, record.slot) = (None, None, None);
        timings.release = release.elapsed();
        timings.total = begun.elapsed();
        info!(sandbox_id = %record.id, build_id = %build.id(), ?timings, "paused");
        Ok(Paused::new(host, directory, record, timings))
    }

    /// Writes memory and disk down as they are at one moment, and goes on. Others can be
    /// made of what comes out.
    ///
    /// # Errors
    /// When a step fails; the error says what the sandbox is then.
    ///
    /// # Cancel safety
    /// A sandbox whose snapshot is dropped is lost. To be run on a task of its own.
    pub async fn freeze(mut self) -> Result<(Self, Frozen, PauseTimings), FailedPause> {
        let begun = Instant::now();
        let mut timings = PauseTimings::default();
        let captured = match self.capture(&mut timings.capture).await {
            Ok(captured) => captured,
            Err(error) => return Err(self.go_on(error.into()).await),
        };
        self = self.continue_after(None).await?;
        timings.stopped = captured.stopped_at.elapsed();
        crash::point("snapshot.continued");
        let build = match captured.publish(&mut timings.capture).await {
            Ok(build) => build,
            Err(error) => {
                let left = AfterPause::Running(Box::new(self));
                let error = error.into();
                return Err(FailedPause { error, left });
            }
        };
        crash::point("snapshot.published");
        // A VMM that was restored goes on noting what changes, from this build on.
        if self.record.build.is_some() {
            self.record.dirty_since = Some(build.id().clone());
        }
        if let Err(error) = self.write_record() {
            // All of memory is written next time, which is always right.
            self.record.dirty_since = None;
            warn!(sandbox_id = %self.id(), error = %Chain(&error), "a build nobody remembers");
        }
        timings.total = begun.elapsed();
        info!(sandbox_id = %self.id(), build_id = %build.id(), ?timings, "frozen");
        let frozen = Frozen::of(&self.record, &self.directory, build);
        Ok((self, frozen, timings))
    }

    /// Lets the guest go on after a pause that failed, unless it was halted before.
    async fn go_on(self, error: PauseError) -> FailedPause {
        warn!(sandbox_id = %self.id(), error = %Chain(&error), "cannot be written down");
        self.forget_capture();
        if self.halted.is_some() {
            let left = AfterPause::Running(Box::new(self));
            return FailedPause { error, left };
        }
        match self.continue_after(Some(&error)).await {
            Ok(sandbox) => {
                if let Err(error) = sandbox.write_record() {
                    warn!(error = %Chain(&error), "what a later owner must know is out of date");
                }
                let left = AfterPause::Running(Box::new(sandbox));
                FailedPause { error, left }
            }
            Err(failed) => FailedPause { error, ..failed },
        }
    }

    /// Whether the programs of its guest may be frozen, and must be [thawed](Self::thaw).
    #[must_use]
    pub fn programs_frozen(&self) -> bool {
        self.programs_frozen.load(Ordering::Relaxed)
    }

    /// Thaws the programs of its guest. One that does not answer is asked again until it does.
    ///
    /// # Cancel safety
    /// It can be dropped and begun again at any point.
    pub async fn thaw(&self) {
        let mut pause = FIRST_THAW_PAUSE;
        while self.programs_frozen() && !self.thaw_once().await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_THAW_PAUSE);
        }
    }

    /// Whether the guest has thawed its programs.
    async fn thaw_once(&self) -> bool {
        let failure = match tokio::time::timeout(THAW_DEADLINE, self.guest.thaw()).await {
            Ok(Ok(())) => {
                self.programs_frozen.store(false, Ordering::Relaxed);
                return true;
            }
            Ok(Err(error)) => Chain(&error).to_string(),
            Err(_) => format!("no answer within {} s", THAW_DEADLINE.as_secs()),
        };
        debug!(sandbox_id = %self.id(), failure, "failed to thaw the programs of a guest");
        false
    }

    /// Lets the guest go on. One that cannot is broken.
    async fn continue_after(self, failure: Option<&PauseError>) -> Result<Self, FailedPause> {
        let Err(source) = self.vm.api().resume().await else {
            if self.programs_frozen() && !self.thaw_once().await {
                warn!(sandbox_id = %self.id(), "its programs are frozen until its guest answers");
            }
            return Ok(self);
        };
        let after = failure.map_or_else(
            || "was written down".to_owned(),
            |failure| format!("could not be paused ({})", Chain(failure)),
        );
        let reason = format!("it {after} and its VM does not go on ({})", Chain(&source));
        let left = AfterPause::Broken(Box::new(self.fail(reason).await));
        let step = "let the guest go on";
        let error = PauseError::Capture(CaptureError::Vmm { step, source });
        Err(FailedPause { error, left })
    }
}

/// Notes that the sandbox may have more than its files from now on.
pub(super) fn begin_to_have(directory: &SandboxDirectory) -> io::Result<()> {
    let shared = LaunchSpec::shared_in(directory.path());
    std::fs::create_dir_all(shared)
}

/// Whether it may have more than its files.
pub(super) fn may_have_more(directory: &SandboxDirectory) -> bool {
    LaunchSpec::shared_in(directory.path()).exists()
}

/// Removes the files that only a running sandbox needs; all else it had is given back. The
/// disk is in the build.
pub(super) fn clear(directory: &SandboxDirectory) {
    blocking::in_place(|| clear_now(directory));
}

fn clear_now(directory: &SandboxDirectory) {
    if let Err(error) = RootDisk::remove_files(directory) {
        warn!(sandbox_id = %directory.id(), error = %Chain(&error), "the disk of a paused sandbox stays");
    }
    let shared = LaunchSpec::shared_in(directory.path());
    if let Err(error) = std::fs::remove_dir_all(&shared)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(sandbox_id = %directory.id(), %error, "what a VMM wrote stays");
    }
    memory::clear(directory);
}
