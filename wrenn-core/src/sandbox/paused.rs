//! A sandbox that lies on disk, and its way back.
//!
//! It has nothing but its files: a record, which names the build that it is. Whatever fails
//! when it is [restored](super::restore), it is paused as before, as long as its build is there.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::directory::SandboxDirectory;
use super::frozen::{Frozen, FrozenRecord};
use super::host::Shared;
use super::pause::{self, PauseTimings};
use super::record::{RecordError, SandboxRecord};
use super::restore::{ResumeError, restore};
use super::{DestroyError, Remains, Sandbox, SandboxConfig, State, references};
use crate::network::EgressPolicy;
use crate::snapshot::{BuildId, BuildStore, Snapshot};
use crate::{Chain, RootDirectory, SandboxId};

/// A paused sandbox. It uses nothing but the room of its files.
#[must_use = "dropping it leaves its files, for the next owner to find"]
#[derive(Debug)]
pub struct Paused {
    host: Arc<Shared>,
    directory: SandboxDirectory,
    record: SandboxRecord,
    timings: PauseTimings,
}

/// A copy of a paused sandbox's memory, in one file.
#[derive(Debug)]
pub struct Compacted {
    of: BuildId,
    snapshot: Snapshot,
}

/// A resume that failed, and the sandbox after it.
#[derive(Debug)]
pub struct FailedResume<P = Paused> {
    /// Why.
    pub error: ResumeError,
    /// The sandbox.
    pub left: AfterResume<P>,
}

/// A sandbox after a failed resume.
#[derive(Debug)]
pub enum AfterResume<P = Paused> {
    /// It is paused as before.
    Paused(Box<P>),
    /// Its build was removed after the resume had begun: the disk that was copied out of it is
    /// all that there is.
    Broken(Box<Remains>),
}

impl Paused {
    pub(super) fn new(
        host: Arc<Shared>,
        directory: SandboxDirectory,
        record: SandboxRecord,
        timings: PauseTimings,
    ) -> Self {
        let mut directory = directory;
        directory.keep();
        Self {
            host,
            directory,
            record,
            timings,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        self.directory.id()
    }

    /// What it was made from and to be.
    #[must_use]
    pub fn config(&self) -> SandboxConfig {
        self.record.config()
    }

    /// When its creation began, in RFC 3339.
    #[must_use]
    pub fn created_at(&self) -> &str {
        &self.record.created_at
    }

    /// Why it was paused, if its host could not let it go on.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.record.reason.as_deref()
    }

    /// The build that it is resumed from.
    #[must_use]
    pub fn build(&self) -> Option<&BuildId> {
        self.record.build.as_ref()
    }

    /// How long each step of its pause took; zeros where another program paused it.
    #[must_use]
    pub fn timings(&self) -> &PauseTimings {
        &self.timings
    }

    /// Changes how long it may be idle once it runs again, zero for any length.
    ///
    /// # Errors
    /// When that cannot be written down; the old length holds then.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError> {
        let before = std::mem::replace(&mut self.record.timeout_sec, timeout.as_secs());
        self.record
            .write(self.directory.path())
            .inspect_err(|_| self.record.timeout_sec = before)
    }

    /// Changes what its guest may connect to once it runs again.
    ///
    /// # Errors
    /// When that cannot be written down; the old policy holds then.
    pub fn set_egress(&mut self, policy: EgressPolicy) -> Result<(), RecordError> {
        let before = std::mem::replace(&mut self.record.egress, policy);
        self.record
            .write(self.directory.path())
            .inspect_err(|_| self.record.egress = before)
    }

    /// Where everything lies.
    pub(crate) fn root(&self) -> &RootDirectory {
        &self.host.root
    }

    /// Goes away without it; [`Host::adopt`](super::Host::adopt) finds it again.
    pub fn leave(self) {
        self.directory.leave();
    }

    /// Removes its data. Its build goes with the next collection of garbage.
    ///
    /// # Errors
    /// When the files cannot be removed.
    pub async fn destroy(mut self) -> Result<(), DestroyError> {
        self.record.state = State::Stopped;
        if let Err(error) = self.record.write(self.directory.path()) {
            warn!(sandbox_id = %self.id(), %error, "a paused sandbox that is being destroyed");
        }
        let id = self.id().clone();
        let removed = self.directory.remove().await;
        removed.map_err(|source| DestroyError::Directory { id, source })
    }

    /// Whether it is paused because it was idle, and nobody has acknowledged that.
    #[must_use]
    pub fn auto_paused(&self) -> bool {
        self.record.auto_paused
    }

    /// Notes that somebody knows that it was paused for being idle.
    ///
    /// # Errors
    /// When that cannot be written down; then it is said again.
    pub fn acknowledge(&mut self) -> Result<(), RecordError> {
        let before = std::mem::replace(&mut self.record.auto_paused, false);
        self.record
            .write(self.directory.path())
            .inspect_err(|_| self.record.auto_paused = before)
    }

    /// What others can be made of, while it stays paused.
    ///
    /// # Errors
    /// When its snapshot cannot be opened.
    pub fn frozen(&self) -> Result<Frozen, ResumeError> {
        let id = self.record.build.as_ref().ok_or(ResumeError::NoBuild)?;
        let snapshot = Snapshot::open(&self.host.root, id)?;
        Ok(Frozen::of(&self.record, &self.directory, snapshot))
    }

    /// Brings its memory into one file, if it lies in so many that this is worth it. `None`
    /// where it is not. Takes as long as reading all of memory, and changes nothing until it
    /// is [taken](Self::take_compacted).
    ///
    /// # Errors
    /// When its snapshot is damaged, or the copy cannot be written.
    pub fn compacted(
        &self,
    ) -> impl Future<Output = Result<Option<Compacted>, ResumeError>> + Send + use<> {
        let (root, build) = (self.host.root.clone(), self.record.build.clone());
        async move {
            let Some(build) = build else { return Ok(None) };
            let work = move || {
                if !Snapshot::open(&root, &build)?.wants_compaction() {
                    return Ok(None);
                }
                let store = BuildStore::open(&root)?;
                let snapshot = store.compact(&build)?;
                Ok(Some(Compacted {
                    of: build,
                    snapshot,
                }))
            };
            tokio::task::spawn_blocking(work).await.unwrap_or(Ok(None))
        }
    }

    /// Is resumed from this copy from now on.
    ///
    /// # Errors
    /// When that cannot be written down; then it is resumed from what it was.
    pub fn take_compacted(&mut self, compacted: Compacted) -> Result<(), RecordError> {
        if self.record.build.as_ref() != Some(&compacted.of) {
            return Ok(());
        }
        let before = self.record.build.replace(compacted.snapshot.id().clone());
        self.record
            .write(self.directory.path())
            .inspect_err(|_| self.record.build = before)
    }

    /// Lets it go on where it was paused.
    ///
    /// # Errors
    /// When a step fails; the error holds the sandbox, paused as before.
    ///
    /// # Cancel safety
    /// It is to be run to its end: dropping the future releases resources in the background.
    pub async fn resume(self) -> Result<Sandbox, FailedResume> {
        self.resume_unless(&CancellationToken::new()).await
    }

    /// The same, unless it is cancelled, which waits until all resources are released.
    pub(crate) async fn resume_unless(
        self,
        cancelled: &CancellationToken,
    ) -> Result<Sandbox, FailedResume> {
        let mut record = self.record.clone();
        let restored = async {
            let frozen = FrozenRecord {
                build: record.build.clone().ok_or(ResumeError::NoBuild)?,
                resources: record.resources,
                disk: record.disk.clone(),
                image: references::image(self.directory.path()).ok().flatten(),
                setup: record.setup.clone(),
                token: record.token.clone(),
            };
            restore(&self.host, &self.directory, &mut record, &frozen, cancelled).await
        };
        match restored.await {
            Ok(restored) => {
                let sandbox = restored.into_sandbox(self.host, self.directory, record);
                info!(sandbox_id = %sandbox.id(), timings = ?sandbox.timings(), "resumed");
                Ok(sandbox)
            }
            Err(error) => {
                warn!(sandbox_id = %self.id(), error = %Chain(&error), "failed to resume a sandbox");
                let left = self.after_failed_resume(record);
                Err(FailedResume { error, left })
            }
        }
    }

    /// Removes what the resume copied, unless it is the last copy. `record` is the one of the
    /// resume, which has a VM once the disk is copied.
    fn after_failed_resume(self, record: SandboxRecord) -> AfterResume {
        let build = record
            .build
            .as_ref()
            .map(|id| self.host.root.builds().join(id.as_str()));
        let removed = build.is_some_and(|build| matches!(build.try_exists(), Ok(false)));
        if removed && record.vmm.is_some() {
            let reason = "its snapshot was removed while it was resumed, and its guest did not \
                go on; its disk is kept until it is destroyed";
            let remains = Remains::write(self.directory, record, reason.to_owned());
            return AfterResume::Broken(Box::new(remains));
        }
        pause::clear(&self.directory);
        AfterResume::Paused(Box::new(self))
    }
}

impl Sandbox {
    /// Lets the next snapshot be a diff to this copy, if it is one of what the sandbox was
    /// resumed from: the contents are the same. Its guest goes on with what it has.
    ///
    /// # Errors
    /// When that cannot be written down; then the next one is a diff to what it was.
    pub fn take_compacted(&mut self, compacted: Compacted) -> Result<(), RecordError> {
        if self.record.dirty_since.as_ref() != Some(&compacted.of) {
            return Ok(());
        }
        let copy = Some(compacted.snapshot.id().clone());
        let before = std::mem::replace(&mut self.record.dirty_since, copy);
        self.write_record()
            .inspect_err(|_| self.record.dirty_since = before)
    }
}
