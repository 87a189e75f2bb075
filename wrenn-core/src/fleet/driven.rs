//! The sandboxes that a fleet drives, as its tasks see them: real ones, or those of tests, which
//! have neither VM nor guest.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::Status;
use super::upkeep::{Trouble, trouble};
use crate::RootDirectory;
use crate::network::{CountError, EgressPolicy, SlotCounters};
use crate::sandbox::{
    ChangeEgressError, Compacted, DestroyError, FailedPause, FailedResume, Frozen, PauseReason,
    PauseTimings, Paused, RecordError, Remains, ResumeError, Sandbox, SandboxConfig, Timings,
};
use crate::snapshot::BuildId;
use crate::vm::ApiError;

/// A sandbox with a VM. Its methods are those of [`Sandbox`], unless they say more.
pub(super) trait Running: Send + Sync + Sized + 'static {
    type Paused: PausedSandbox<Running = Self>;

    fn config(&self) -> SandboxConfig;
    fn root(&self) -> &RootDirectory;
    fn timings(&self) -> Timings;
    fn halted(&self) -> Option<&str>;
    /// Fills in all of a status that only a running sandbox has.
    fn describe(&self, status: Status) -> Status;
    fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError>;
    fn take_compacted(&mut self, compacted: Compacted) -> Result<(), RecordError>;
    fn set_egress(
        &mut self,
        policy: EgressPolicy,
    ) -> impl Future<Output = Result<(), ChangeEgressError>> + Send;
    fn traffic(&self) -> impl Future<Output = Result<SlotCounters, CountError>> + Send;
    /// Ends when it must not go on as it is.
    fn trouble(&self, reserve_mib: u64) -> impl Future<Output = Trouble> + Send;
    /// Ends with the reason when its VM has ended.
    fn ended(&self) -> impl Future<Output = String> + Send;
    fn continue_vm(&self) -> impl Future<Output = ()> + Send;
    fn programs_frozen(&self) -> bool;
    fn thaw(&self) -> impl Future<Output = ()> + Send;
    fn halt(&mut self, reason: String) -> impl Future<Output = Result<(), ApiError>> + Send;
    fn release(&mut self) -> impl Future<Output = Result<(), ApiError>> + Send;
    fn pause(
        self,
        reason: PauseReason,
    ) -> impl Future<Output = Result<Self::Paused, FailedPause<Self>>> + Send;
    fn freeze(
        self,
    ) -> impl Future<Output = Result<(Self, Frozen, PauseTimings), FailedPause<Self>>> + Send;
    fn fail(self, reason: String) -> impl Future<Output = Remains> + Send;
    fn destroy(self) -> impl Future<Output = Result<(), DestroyError>> + Send;
    fn leave(self);
}

/// A paused sandbox. Its methods are those of [`Paused`].
pub(super) trait PausedSandbox: Send + Sync + Sized + 'static {
    type Running: Running<Paused = Self>;

    fn config(&self) -> SandboxConfig;
    fn root(&self) -> &RootDirectory;
    fn timings(&self) -> PauseTimings;
    fn reason(&self) -> Option<&str>;
    fn auto_paused(&self) -> bool;
    fn build(&self) -> Option<&BuildId>;
    fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError>;
    fn set_egress(&mut self, policy: EgressPolicy) -> Result<(), RecordError>;
    fn acknowledge(&mut self) -> Result<(), RecordError>;
    fn frozen(&self) -> Result<Frozen, ResumeError>;
    fn compacted(&self) -> BoxFuture<'static, Result<Option<Compacted>, ResumeError>>;
    fn take_compacted(&mut self, compacted: Compacted) -> Result<(), RecordError>;
    fn resume(
        self,
        cancelled: &CancellationToken,
    ) -> impl Future<Output = Result<Self::Running, FailedResume<Self>>> + Send;
    fn destroy(self) -> impl Future<Output = Result<(), DestroyError>> + Send;
    fn leave(self);
}

impl Running for Sandbox {
    type Paused = Paused;

    fn config(&self) -> SandboxConfig {
        self.config()
    }

    fn root(&self) -> &RootDirectory {
        self.root()
    }

    fn timings(&self) -> Timings {
        *self.timings()
    }

    fn halted(&self) -> Option<&str> {
        self.halted()
    }

    fn describe(&self, status: Status) -> Status {
        Status {
            created_at: self.created_at().to_owned(),
            guest: Some(self.guest().clone()),
            slot: Some(self.slot()),
            vmm_pid: Some(self.vm().pid()),
            pager_pid: self.pager_pid(),
            ..status
        }
    }

    fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError> {
        self.set_timeout(timeout)
    }

    fn take_compacted(&mut self, compacted: Compacted) -> Result<(), RecordError> {
        self.take_compacted(compacted)
    }

    async fn set_egress(&mut self, policy: EgressPolicy) -> Result<(), ChangeEgressError> {
        self.set_egress(policy).await
    }

    async fn traffic(&self) -> Result<SlotCounters, CountError> {
        self.traffic().await
    }

    async fn trouble(&self, reserve_mib: u64) -> Trouble {
        trouble(self, reserve_mib).await
    }

    async fn ended(&self) -> String {
        let reason = self.exited().await;
        if self.lost_pager() {
            return "its pager ended, and its VM was ended with it".to_owned();
        }
        let console = self.vm().console_tail();
        if console.is_empty() {
            format!("its VM ended ({reason})")
        } else {
            format!("its VM ended ({reason}); its console says: {console}")
        }
    }

    async fn continue_vm(&self) {
        self.continue_vm().await;
    }

    fn programs_frozen(&self) -> bool {
        self.programs_frozen()
    }

    async fn thaw(&self) {
        self.thaw().await;
    }

    async fn halt(&mut self, reason: String) -> Result<(), ApiError> {
        self.halt(reason).await
    }

    async fn release(&mut self) -> Result<(), ApiError> {
        self.release().await
    }

    async fn pause(self, reason: PauseReason) -> Result<Paused, FailedPause> {
        self.pause(reason).await
    }

    async fn freeze(self) -> Result<(Self, Frozen, PauseTimings), FailedPause> {
        self.freeze().await
    }

    async fn fail(self, reason: String) -> Remains {
        self.fail(reason).await
    }

    async fn destroy(self) -> Result<(), DestroyError> {
        self.destroy().await
    }

    fn leave(self) {
        self.leave();
    }
}

impl PausedSandbox for Paused {
    type Running = Sandbox;

    fn config(&self) -> SandboxConfig {
        self.config()
    }

    fn root(&self) -> &RootDirectory {
        self.root()
    }

    fn timings(&self) -> PauseTimings {
        *self.timings()
    }

    fn reason(&self) -> Option<&str> {
        self.reason()
    }

    fn auto_paused(&self) -> bool {
        self.auto_paused()
    }

    fn build(&self) -> Option<&BuildId> {
        self.build()
    }

    fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError> {
        self.set_timeout(timeout)
    }

    fn set_egress(&mut self, policy: EgressPolicy) -> Result<(), RecordError> {
        self.set_egress(policy)
    }

    fn acknowledge(&mut self) -> Result<(), RecordError> {
        self.acknowledge()
    }

    fn frozen(&self) -> Result<Frozen, ResumeError> {
        self.frozen()
    }

    fn compacted(&self) -> BoxFuture<'static, Result<Option<Compacted>, ResumeError>> {
        Box::pin(self.compacted())
    }

    fn take_compacted(&mut self, compacted: Compacted) -> Result<(), RecordError> {
        self.take_compacted(compacted)
    }

    async fn resume(self, cancelled: &CancellationToken) -> Result<Sandbox, FailedResume> {
        self.resume_unless(cancelled).await
    }

    async fn destroy(self) -> Result<(), DestroyError> {
        self.destroy().await
    }

    fn leave(self) {
        self.leave();
    }
}
