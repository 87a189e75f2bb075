//! Sandboxes of tests: their VMs are counted, and their guests answer or hang.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::driven::{PausedSandbox, Running};
use super::roster::Roster;
use super::upkeep::Trouble;
use super::{CreateError, Limits, Reserved, SandboxHandle, Status};
use crate::RootDirectory;
use crate::network::{CountError, EgressPolicy, SlotCounters};
use crate::sandbox::{
    AfterPause, AfterResume, CaptureError, ChangeEgressError, Compacted, CreateSandboxError,
    DestroyError, FailedPause, FailedResume, Frozen, GreetError, Greeting, Keep, PauseReason,
    PauseTimings, RecordError, Remains, ResumeError, SandboxConfig, Timings,
};
use crate::snapshot::BuildId;
use crate::vm::ApiError;

/// How long a guest may take to be greeted.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
/// How long a sound guest takes.
const BOOT: Duration = Duration::from_millis(300);
/// How long it takes to write a guest's memory to the disk.
const CAPTURE: Duration = Duration::from_millis(500);
/// How long a VM takes to end, and its resources to be released.
pub(super) const TEARDOWN: Duration = Duration::from_millis(200);

pub(super) const LIMITS: Limits = Limits {
    sandboxes: 3,
    vcpus: 64,
    memory_mib: 1 << 20,
    disk_reserve_mib: 0,
};

/// A host of such sandboxes, and their fleet's roster.
#[derive(Clone)]
pub(super) struct FakeHost(Arc<Inner>);

struct Inner {
    roster: Roster,
    root: RootDirectory,
    _directory: tempfile::TempDir,
    vms: AtomicU32,
    hostile: AtomicBool,
    builds_removed: AtomicBool,
}

impl FakeHost {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self(Arc::new(Inner {
            roster: Roster::new(LIMITS),
            root: RootDirectory::new(directory.path()),
            _directory: directory,
            vms: AtomicU32::new(0),
            hostile: AtomicBool::new(false),
            builds_removed: AtomicBool::new(false),
        }))
    }

    pub(super) fn roster(&self) -> &Roster {
        &self.0.roster
    }

    /// From now on guests let every call hang, or answer again.
    pub(super) fn set_hostile(&self, hostile: bool) {
        self.0.hostile.store(hostile, Ordering::Relaxed);
    }

    /// Removes the builds of all paused sandboxes.
    pub(super) fn remove_builds(&self) {
        self.0.builds_removed.store(true, Ordering::Relaxed);
    }

    fn is_hostile(&self) -> bool {
        self.0.hostile.load(Ordering::Relaxed)
    }

    pub(super) fn reserved(&self) -> Reserved {
        self.0.roster.reserved().0
    }

    /// VMs that have not ended.
    pub(super) fn vms(&self) -> u32 {
        let vms = self.0.vms.load(Ordering::Relaxed);
        let reserved = self.reserved().sandboxes;
        assert!(vms <= reserved, "{vms} VMs, and {reserved} are reserved");
        assert!(reserved <= LIMITS.sandboxes);
        vms
    }

    /// Begins to create a sandbox.
    pub(super) fn begin(&self) -> Result<SandboxHandle, CreateError> {
        let config = SandboxConfig {
            keep: Keep::UntilDestroyed,
            ..SandboxConfig::from_template("minimal")
        };
        let host = self.clone();
        let create = |config, cancelled: CancellationToken| async move {
            let vm = FakeVm::start(&host);
            match vm.greet(&cancelled).await {
                Ok(()) => Ok(FakeSandbox::new(config, vm)),
                Err(error) => {
                    vm.end().await;
                    Err(CreateSandboxError::Restore(Box::new(error.into())))
                }
            }
        };
        self.0.roster.begin(config, &self.0.root, create)
    }

    /// A sandbox whose owner died while its guest's programs were frozen.
    pub(super) fn left_by_another(&self) -> FakeSandbox {
        let config = SandboxConfig::from_template("minimal");
        self.0.vms.fetch_add(1, Ordering::Relaxed);
        FakeSandbox {
            programs_frozen: true,
            ..FakeSandbox::new(config, FakeVm(self.clone()))
        }
    }
}

/// A VM, which ends when this is dropped.
struct FakeVm(FakeHost);

impl FakeVm {
    fn start(host: &FakeHost) -> Self {
        host.0.vms.fetch_add(1, Ordering::Relaxed);
        host.vms();
        Self(host.clone())
    }

    async fn greet(&self, cancelled: &CancellationToken) -> Result<(), GreetError> {
        let host = &self.0;
        let calls = async {
            if host.is_hostile() {
                return pending().await;
            }
            sleep(BOOT).await;
            Ok(())
        };
        let greeting = Greeting::begin(DEADLINE, cancelled);
        greeting.set_up(calls, pending()).await
    }

    async fn end(self) {
        sleep(TEARDOWN).await;
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.0.0.vms.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) struct FakeSandbox {
    config: SandboxConfig,
    vm: FakeVm,
    programs_frozen: bool,
    thawed: CancellationToken,
}

pub(super) struct FakePaused {
    config: SandboxConfig,
    host: FakeHost,
}

impl FakeSandbox {
    fn new(config: SandboxConfig, vm: FakeVm) -> Self {
        Self {
            config,
            vm,
            programs_frozen: false,
            thawed: CancellationToken::new(),
        }
    }

    /// Cancelled once the programs of its guest are thawed.
    pub(super) fn thawed(&self) -> CancellationToken {
        self.thawed.clone()
    }
}

impl Running for FakeSandbox {
    type Paused = FakePaused;

    fn config(&self) -> SandboxConfig {
        self.config.clone()
    }

    fn root(&self) -> &RootDirectory {
        &self.vm.0.0.root
    }

    fn timings(&self) -> Timings {
        Timings::default()
    }

    fn halted(&self) -> Option<&str> {
        None
    }

    fn describe(&self, status: Status) -> Status {
        status
    }

    fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError> {
        self.config.timeout = timeout;
        Ok(())
    }

    fn take_compacted(&mut self, _: Compacted) -> Result<(), RecordError> {
        Ok(())
    }

    async fn set_egress(&mut self, policy: EgressPolicy) -> Result<(), ChangeEgressError> {
        self.config.egress = policy;
        Ok(())
    }

    async fn traffic(&self) -> Result<SlotCounters, CountError> {
        Ok(SlotCounters::default())
    }

    async fn trouble(&self, _: u64) -> Trouble {
        pending().await
    }

    async fn ended(&self) -> String {
        pending().await
    }

    async fn continue_vm(&self) {
        // As long as a VMM that does not answer is waited for.
        if self.vm.0.is_hostile() {
            sleep(DEADLINE).await;
        }
    }

    fn programs_frozen(&self) -> bool {
        self.programs_frozen && !self.thawed.is_cancelled()
    }

    async fn thaw(&self) {
        while self.vm.0.is_hostile() {
            sleep(BOOT).await;
        }
        self.thawed.cancel();
    }

    async fn halt(&mut self, _: String) -> Result<(), ApiError> {
        Ok(())
    }

    async fn release(&mut self) -> Result<(), ApiError> {
        Ok(())
    }

    async fn pause(self, _: PauseReason) -> Result<FakePaused, FailedPause<Self>> {
        sleep(CAPTURE).await;
        let (config, host) = (self.config, self.vm.0.clone());
        self.vm.end().await;
        Ok(FakePaused { config, host })
    }

    async fn freeze(self) -> Result<(Self, Frozen, PauseTimings), FailedPause<Self>> {
        sleep(CAPTURE).await;
        Err(FailedPause {
            error: CaptureError::Thread.into(),
            left: AfterPause::Running(Box::new(self)),
        })
    }

    async fn fail(self, _: String) -> Remains {
        let remains = Remains::for_tests(self.root(), &self.config);
        self.vm.end().await;
        remains
    }

    async fn destroy(self) -> Result<(), DestroyError> {
        self.vm.end().await;
        Ok(())
    }

    fn leave(self) {}
}

impl PausedSandbox for FakePaused {
    type Running = FakeSandbox;

    fn config(&self) -> SandboxConfig {
        self.config.clone()
    }

    fn root(&self) -> &RootDirectory {
        &self.host.0.root
    }

    fn timings(&self) -> PauseTimings {
        PauseTimings::default()
    }

    fn reason(&self) -> Option<&str> {
        None
    }

    fn auto_paused(&self) -> bool {
        false
    }

    fn build(&self) -> Option<&BuildId> {
        None
    }

    fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError> {
        self.config.timeout = timeout;
        Ok(())
    }

    fn set_egress(&mut self, policy: EgressPolicy) -> Result<(), RecordError> {
        self.config.egress = policy;
        Ok(())
    }

    fn acknowledge(&mut self) -> Result<(), RecordError> {
        Ok(())
    }

    fn frozen(&self) -> Result<Frozen, ResumeError> {
        Err(ResumeError::NoBuild)
    }

    fn compacted(&self) -> BoxFuture<'static, Result<Option<Compacted>, ResumeError>> {
        Box::pin(async { Ok(None) })
    }

    fn take_compacted(&mut self, _: Compacted) -> Result<(), RecordError> {
        Ok(())
    }

    async fn resume(
        self,
        cancelled: &CancellationToken,
    ) -> Result<FakeSandbox, FailedResume<Self>> {
        let vm = FakeVm::start(&self.host);
        match vm.greet(cancelled).await {
            Ok(()) => Ok(FakeSandbox::new(self.config, vm)),
            Err(error) => {
                vm.end().await;
                let left = if self.host.0.builds_removed.load(Ordering::Relaxed) {
                    let remains = Remains::for_tests(&self.host.0.root, &self.config);
                    AfterResume::Broken(Box::new(remains))
                } else {
                    AfterResume::Paused(Box::new(self))
                };
                let error = error.into();
                Err(FailedResume { error, left })
            }
        }
    }

    async fn destroy(self) -> Result<(), DestroyError> {
        Ok(())
    }

    fn leave(self) {}
}
