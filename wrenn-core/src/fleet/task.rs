//! The task that owns one sandbox for as long as it exists.
//!
//! It does one operation after another. Two things do not wait for their turn among the
//! requests: a destroy, which cancels a creation or a resume that waits for its guest, and the
//! end of the fleet. The sandbox's share of the host is kept until its VM has ended and its
//! resources are released, whatever the operation was.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;
use tracing::{Instrument, error, info, info_span, warn};

use super::admission::Reservation;
use super::compaction::Compaction;
use super::driven::{PausedSandbox, Running};
use super::handle::Request;
use super::roster::Roster;
use super::upkeep::{DiskRoom, LOOK, Trouble};
use super::{
    CreateError, FleetEvent, FreezeRefused, PauseRefused, ResumeRefused, SandboxHandle, Status,
};
use crate::chain::Chain;
use crate::devicemapper::Alarm;
use crate::network::SlotCounters;
use crate::sandbox::{
    Adopted, AfterPause, AfterResume, ChangeEgressError, Compacted, CreateSandboxError, Event,
    FailedPause, FailedResume, Frozen, PauseReason, RecordError, Remains, State,
};

/// What a task owns.
enum Body<S: Running> {
    Running(Box<S>),
    Paused(Box<S::Paused>),
    Broken(Box<Remains>),
}

/// The next work of a task.
enum Work {
    Asked(Request),
    /// It was idle for longer than it may be.
    Expire,
    /// It must not go on as it is.
    Trouble(Trouble),
    /// It is halted, and it may be time to do something about that.
    LookAgain,
    Destroy,
    Leave,
}

struct Owner<S: Running> {
    handle: SandboxHandle,
    body: Body<S>,
    /// The sandbox's share of the host, while it has a VM.
    reserved: Option<Reservation>,
    requests: mpsc::Receiver<Request>,
    compaction: Compaction,
    /// Dropped last, when all that the task had is released.
    _task: DropGuard,
}

/// The life of a sandbox that is created now. The creation releases all that it has made
/// before it fails, and when the sandbox is to be destroyed.
pub(super) async fn created<S: Running>(
    handle: SandboxHandle,
    creation: impl Future<Output = Result<S, CreateSandboxError>> + Send,
    reserved: Reservation,
    requests: mpsc::Receiver<Request>,
    roster: Roster,
) {
    let span = info_span!("sandbox", sandbox_id = %handle.id());
    let task = handle.task_guard();
    let life = async {
        // A panic must not leave its callers waiting.
        let outcome = AssertUnwindSafe(creation).catch_unwind().await;
        let outcome = outcome.unwrap_or(Err(CreateSandboxError::Thread));
        let destroyed = handle.destroy_asked().is_cancelled();
        let (event, failure) = match outcome {
            Ok(sandbox) if !destroyed => {
                let created = FleetEvent::Created(handle.id().clone(), sandbox.timings());
                roster.tell(created);
                let owner = Owner {
                    handle: handle.clone(),
                    body: Body::Running(Box::new(sandbox)),
                    reserved: Some(reserved),
                    requests,
                    compaction: Compaction::default(),
                    _task: task,
                };
                owner.publish(Event::Booted);
                owner.live(&roster).await;
                return;
            }
            Err(error) if !destroyed => {
                warn!(error = %Chain(&error), "failed to create the sandbox");
                let event = FleetEvent::NotCreated(handle.id().clone());
                (event, CreateError::Failed(Arc::new(error)))
            }
            created => {
                if let Ok(sandbox) = created
                    && let Err(error) = sandbox.destroy().await
                {
                    error!(error = %Chain(&error), "destroyed in part");
                    handle.note_not_released(Arc::new(error));
                }
                info!("destroyed while it was created");
                let event = FleetEvent::Abandoned(handle.id().clone());
                (event, CreateError::Destroyed(handle.id().clone()))
            }
        };
        drop(reserved);
        roster.forget(handle.id());
        roster.tell(event);
        handle.publish_failure(failure);
        drop(task);
    };
    life.instrument(span).await;
}

/// The life of a sandbox that was adopted.
pub(super) async fn adopted<S: Running>(
    handle: SandboxHandle,
    adopted: Adopted<S, S::Paused>,
    reserved: Option<Reservation>,
    requests: mpsc::Receiver<Request>,
    roster: Roster,
) {
    let span = info_span!("sandbox", sandbox_id = %handle.id());
    let task = handle.task_guard();
    let owner = Owner {
        handle,
        body: match adopted {
            Adopted::Running(sandbox) => Body::Running(sandbox),
            Adopted::Paused(paused) => Body::Paused(paused),
            Adopted::Broken(remains) => Body::Broken(remains),
        },
        reserved,
        requests,
        compaction: Compaction::default(),
        _task: task,
    };
    let life = async {
        owner.publish(Event::Booted);
        if let Body::Running(sandbox) = &owner.body {
            // Nothing is asked of the VM until it is known to run, but that it ends.
            tokio::select! {
                biased;
                () = owner.handle.destroy_asked().cancelled() => {}
                () = roster.left() => {}
                () = sandbox.continue_vm() => {}
            }
        }
        owner.live(&roster).await;
    };
    life.instrument(span).await;
}

impl<S: Running> Owner<S> {
    async fn live(mut self, roster: &Roster) {
        loop {
            let work;
            (work, self) = self.next(roster).await;
            match work {
                Work::Asked(request) => self = self.answer(request, roster).await,
                Work::Expire => {
                    info!("reached its idle timeout");
                    (self, _) = self.pause(PauseReason::Idle, roster).await;
                    // If that failed, it is not tried again at once.
                    self.handle.activity().touch();
                }
                Work::Trouble(trouble) => self = self.meet(trouble, roster).await,
                Work::LookAgain => self = self.shelter(roster).await,
                Work::Leave => return self.leave(),
                Work::Destroy => return self.destroy(roster).await,
            }
        }
    }

    async fn answer(mut self, request: Request, roster: &Roster) -> Self {
        match request {
            Request::SetTimeout(timeout, reply) => {
                let done = self.set_timeout(timeout);
                answer(reply, done);
            }
            Request::SetEgress(policy, reply) => {
                let done: Result<_, ChangeEgressError> = match &mut self.body {
                    Body::Running(sandbox) => sandbox.set_egress(policy).await,
                    Body::Paused(paused) => paused.set_egress(policy).map_err(Into::into),
                    // It connects to nothing.
                    Body::Broken(_) => Ok(()),
                };
                answer(reply, done);
            }
            Request::Traffic(reply) => answer(reply, self.traffic().await),
            Request::Pause(reply) => {
                let done;
                (self, done) = self.pause(PauseReason::Asked, roster).await;
                answer(reply, done);
            }
            Request::Freeze(reply) => {
                let done;
                (self, done) = self.freeze(roster).await;
                answer(reply, done);
            }
            Request::Acknowledge(reply) => {
                let done = self.acknowledge();
                answer(reply, done);
            }
            Request::Resume(timeout, reply) => {
                let done;
                (self, done) = self.resume(timeout, roster).await;
                answer(reply, done);
            }
        }
        self
    }

    /// The next work. A VM that ends meanwhile makes the sandbox a broken one.
    async fn next(mut self, roster: &Roster) -> (Work, Self) {
        let handle = self.handle.clone();
        loop {
            let destroy = handle.destroy_asked().cancelled();
            match &self.body {
                Body::Running(sandbox) => {
                    let reserve_mib = roster.reserved().1.disk_reserve_mib;
                    let reason = tokio::select! {
                        biased;
                        () = destroy => return (Work::Destroy, self),
                        () = roster.left() => return (Work::Leave, self),
                        reason = sandbox.ended() => reason,
                        work = asked(&mut self.requests) => return (work, self),
                        () = expired(&handle, sandbox.config().timeout) => return (Work::Expire, self),
                        () = tokio::time::sleep(LOOK), if sandbox.halted().is_some() => return (Work::LookAgain, self),
                        trouble = sandbox.trouble(reserve_mib), if sandbox.halted().is_none() => {
                            return (Work::Trouble(trouble), self);
                        }
                        () = sandbox.thaw(), if sandbox.programs_frozen() && sandbox.halted().is_none() => continue,
                        compacted = self.compaction.finished(), if self.compaction.is_running() => {
                            self.take_compacted(compacted);
                            continue;
                        }
                    };
                    warn!(reason, "broken");
                    roster.tell(FleetEvent::Broke(self.handle.id().clone()));
                    self = self.fail(reason).await;
                }
                Body::Paused(paused) => {
                    self.compaction.begin(&**paused);
                    tokio::select! {
                        biased;
                        () = destroy => return (Work::Destroy, self),
                        () = roster.left() => return (Work::Leave, self),
                        // Whoever asks for something does not wait for this.
                        work = asked(&mut self.requests) => return (work, self),
                        compacted = self.compaction.finished(), if self.compaction.is_running() => {
                            self.take_compacted(compacted);
                        }
                    }
                }
                Body::Broken(_) => {
                    let work = tokio::select! {
                        biased;
                        () = destroy => Work::Destroy,
                        () = roster.left() => Work::Leave,
                        work = asked(&mut self.requests) => work,
                    };
                    return (work, self);
                }
            }
        }
    }

    /// Takes a copy of its memory in one file, if there is one and it is still of use.
    fn take_compacted(&mut self, compacted: Option<Compacted>) {
        let Some(compacted) = compacted else {
            return;
        };
        let taken = match &mut self.body {
            Body::Running(sandbox) => sandbox.take_compacted(compacted),
            Body::Paused(paused) => paused.take_compacted(compacted),
            Body::Broken(_) => return,
        };
        match taken {
            Ok(()) => info!("its memory is in one file again"),
            Err(error) => warn!(error = %Chain(&error), "its memory stays in many files"),
        }
    }

    /// Waits for a copy that is being made, before something is built upon what it is of.
    async fn settle_compaction(&mut self) {
        if self.compaction.is_running() && matches!(self.body, Body::Running(_)) {
            let compacted = self.compaction.finished().await;
            self.take_compacted(compacted);
        }
    }

    /// Does what is best for a sandbox that must not go on as it is.
    async fn meet(mut self, trouble: Trouble, roster: &Roster) -> Self {
        match trouble {
            Trouble::Host(room) => self.halt(room.reason(), roster).await,
            Trouble::Disk(Alarm::Filling { used_percent }) => {
                let reason = format!("its disk is nearly full, {used_percent} % are used");
                self.halt(reason, roster).await
            }
            Trouble::Disk(Alarm::Overflow) => {
                let reason = "its disk was full, and a write of its guest failed".to_owned();
                self.halt(reason, roster).await
            }
            Trouble::Disk(Alarm::Invalid) => {
                let reason =
                    "its disk cannot be read any more; the host's disk was full".to_owned();
                warn!(reason, "broken");
                roster.tell(FleetEvent::Broke(self.handle.id().clone()));
                self = self.fail(reason).await;
                self
            }
            Trouble::Vmm(reason) => {
                warn!(reason, "broken");
                roster.tell(FleetEvent::Broke(self.handle.id().clone()));
                self.fail(reason).await
            }
        }
    }

    /// Stops its guest at once, and pauses it if there is room for that.
    async fn halt(mut self, reason: String, roster: &Roster) -> Self {
        let Body::Running(sandbox) = &mut self.body else {
            return self;
        };
        warn!(reason, "halted");
        if let Err(error) = sandbox.halt(reason).await {
            warn!(error = %Chain(&error), "its VMM does not halt it");
            // It is tried again with the next look.
            tokio::time::sleep(LOOK).await;
            return self;
        }
        self.publish(Event::PauseAsked);
        self.shelter(roster).await
    }

    /// Pauses a sandbox that is halted, once there is room for its memory; or lets it go on,
    /// once there is enough for all.
    async fn shelter(mut self, roster: &Roster) -> Self {
        let Body::Running(sandbox) = &mut self.body else {
            return self;
        };
        let room = DiskRoom::of(sandbox.root(), roster.reserved().1.disk_reserve_mib);
        if room.holds(sandbox.config().resources.memory_mib()) {
            (self, _) = self.pause(PauseReason::Asked, roster).await;
        } else if room.is_back() {
            self = self.release().await;
        }
        self
    }

    async fn release(mut self) -> Self {
        if let Body::Running(sandbox) = &mut self.body {
            match sandbox.release().await {
                Ok(()) => info!("goes on: there is room again"),
                Err(error) => warn!(error = %Chain(&error), "its VMM does not let it go on"),
            }
            self.publish(Event::PauseFailed);
        }
        self
    }

    async fn fail(mut self, reason: String) -> Self {
        // The state is told first: nobody shall begin anything with it.
        let status = self.handle.status();
        let state = status.state.after(Event::Failed).unwrap_or(State::Error);
        self.handle
            .publish(status.without_vm(state, Some(reason.clone())));
        self.body = match self.body {
            Body::Running(sandbox) => Body::Broken(Box::new(sandbox.fail(reason).await)),
            other => other,
        };
        self.reserved = None;
        self
    }

    /// Pauses it. Whatever talks to its guest is told first that it no longer runs.
    async fn pause(
        mut self,
        reason: PauseReason,
        roster: &Roster,
    ) -> (Self, Result<(), PauseRefused>) {
        self.settle_compaction().await;
        let status = self.handle.status();
        let sandbox = match self.body {
            Body::Running(sandbox) => sandbox,
            Body::Paused(_) => return (self, Ok(())),
            Body::Broken(_) => {
                let refused = status.cannot_pause(self.handle.id());
                return (self, Err(refused));
            }
        };
        let state = status.state.after(Event::PauseAsked);
        let pausing = status.without_vm(state.unwrap_or(State::Pausing), None);
        self.handle.publish(pausing);
        match sandbox.pause(reason).await {
            Ok(paused) => {
                let (id, timings) = (paused.config().id, paused.timings());
                self.body = Body::Paused(Box::new(paused));
                self.reserved = None;
                self.publish(Event::Paused);
                roster.tell(FleetEvent::Paused(id, timings));
                (self, Ok(()))
            }
            Err(FailedPause { error, left }) => {
                let event;
                (self.body, event) = left_as(left);
                self.publish_left(event, roster);
                let id = self.handle.id().clone();
                roster.tell(FleetEvent::NotPaused(id.clone()));
                let source = Arc::new(error);
                (self, Err(PauseRefused::Failed { id, source }))
            }
        }
    }

    /// Says what a pause left that failed.
    fn publish_left(&mut self, event: Event, roster: &Roster) {
        if event == Event::Failed {
            self.reserved = None;
            roster.tell(FleetEvent::Broke(self.handle.id().clone()));
        }
        self.publish(event);
    }

    /// Writes it down. Whatever talks to its guest only notices that the guest stands still.
    async fn freeze(mut self, roster: &Roster) -> (Self, Result<Frozen, FreezeRefused>) {
        self.settle_compaction().await;
        let id = self.handle.id().clone();
        let sandbox = match self.body {
            Body::Running(sandbox) if sandbox.halted().is_some() => {
                self.body = Body::Running(sandbox);
                let refused = self.handle.status().cannot_freeze(&id);
                return (self, Err(refused));
            }
            Body::Running(sandbox) => sandbox,
            Body::Paused(paused) => {
                let frozen = paused.frozen().map_err(|error| FreezeRefused::Paused {
                    id,
                    source: Arc::new(error),
                });
                self.body = Body::Paused(paused);
                return (self, frozen);
            }
            Body::Broken(_) => {
                let refused = self.handle.status().cannot_freeze(&id);
                return (self, Err(refused));
            }
        };
        match sandbox.freeze().await {
            Ok((sandbox, frozen, timings)) => {
                self.body = Body::Running(Box::new(sandbox));
                roster.tell(FleetEvent::Frozen(id, timings));
                (self, Ok(frozen))
            }
            Err(FailedPause { error, left }) => {
                let event;
                (self.body, event) = left_as(left);
                self.publish_left(event, roster);
                roster.tell(FleetEvent::NotFrozen(id.clone()));
                let source = Arc::new(error);
                (self, Err(FreezeRefused::Failed { id, source }))
            }
        }
    }

    fn acknowledge(&mut self) -> Result<(), RecordError> {
        if let Body::Paused(paused) = &mut self.body {
            paused.acknowledge()?;
            let status = self.handle.status();
            self.handle.publish(Status {
                auto_paused: false,
                ..status
            });
        }
        Ok(())
    }

    async fn resume(
        mut self,
        timeout: Option<Duration>,
        roster: &Roster,
    ) -> (Self, Result<(), ResumeRefused>) {
        let status = self.handle.status();
        let id = self.handle.id().clone();
        if matches!(self.body, Body::Broken(_)) {
            let refused = status.cannot_resume(&id);
            return (self, Err(refused));
        }
        if let Some(timeout) = timeout
            && let Err(error) = self.set_timeout(timeout)
        {
            let source = Arc::new(error);
            return (self, Err(ResumeRefused::Timeout { id, source }));
        }
        self.handle.activity().touch();
        if let Body::Running(sandbox) = &self.body
            && sandbox.halted().is_some()
        {
            // It has its share of the host, but for room on the disk.
            if let Err(refusal) = roster.disk_room(sandbox.root()) {
                return (self, Err(refusal.into()));
            }
            self = self.release().await;
            return (self, Ok(()));
        }
        let paused = match self.body {
            Body::Paused(paused) => paused,
            running_or_broken => {
                self.body = running_or_broken;
                return (self, Ok(()));
            }
        };
        let reserved = match roster.admit(paused.config().resources, paused.root()) {
            Ok(reserved) => reserved,
            Err(refusal) => {
                self.body = Body::Paused(paused);
                return (self, Err(refusal.into()));
            }
        };
        let status = self.handle.status();
        let state = status.state.after(Event::ResumeAsked);
        let resuming = status.without_vm(state.unwrap_or(State::Resuming), None);
        self.handle.publish(resuming);
        match paused.resume(self.handle.destroy_asked()).await {
            Ok(sandbox) => {
                let timings = sandbox.timings();
                self.body = Body::Running(Box::new(sandbox));
                self.reserved = Some(reserved);
                self.handle.activity().touch();
                self.publish(Event::Resumed);
                roster.tell(FleetEvent::Resumed(id, timings));
                (self, Ok(()))
            }
            Err(FailedResume { error, left }) => {
                drop(reserved);
                roster.tell(FleetEvent::NotResumed(id.clone()));
                let source = Arc::new(error);
                let refused = match left {
                    AfterResume::Paused(paused) => {
                        self.body = Body::Paused(paused);
                        self.publish(Event::ResumeFailed);
                        ResumeRefused::Failed { id, source }
                    }
                    AfterResume::Broken(remains) => {
                        self.body = Body::Broken(remains);
                        self.publish(Event::Failed);
                        roster.tell(FleetEvent::Broke(id.clone()));
                        ResumeRefused::Broken { id, source }
                    }
                };
                (self, Err(refused))
            }
        }
    }

    fn set_timeout(&mut self, timeout: Duration) -> Result<(), RecordError> {
        match &mut self.body {
            Body::Running(sandbox) => sandbox.set_timeout(timeout)?,
            Body::Paused(paused) => paused.set_timeout(timeout)?,
            Body::Broken(_) => {}
        }
        let status = self.handle.status();
        self.handle.publish(Status { timeout, ..status });
        Ok(())
    }

    async fn traffic(&self) -> Option<SlotCounters> {
        let Body::Running(sandbox) = &self.body else {
            return None;
        };
        let counted = sandbox.traffic().await;
        counted
            .inspect_err(|error| warn!(error = %Chain(error), "cannot count its traffic"))
            .ok()
    }

    fn leave(self) {
        match self.body {
            Body::Running(sandbox) => sandbox.leave(),
            Body::Paused(paused) => paused.leave(),
            Body::Broken(remains) => remains.leave(),
        }
    }

    async fn destroy(self, roster: &Roster) {
        let done = match self.body {
            Body::Running(sandbox) => sandbox.destroy().await,
            Body::Paused(paused) => paused.destroy().await,
            Body::Broken(remains) => remains.destroy().await,
        };
        match done {
            Ok(()) => info!("destroyed"),
            Err(error) => {
                error!(error = %Chain(&error), "destroyed in part");
                self.handle.note_not_released(Arc::new(error));
            }
        }
        drop(self.reserved);
        roster.forget(self.handle.id());
        roster.tell(FleetEvent::Destroyed(self.handle.id().clone()));
        let status = self.handle.status();
        let state = status
            .state
            .after(Event::Destroyed)
            .unwrap_or(State::Stopped);
        self.handle.publish(status.without_vm(state, None));
    }

    fn publish(&self, event: Event) {
        // Whatever led here counts as use: the time that a boot or a resume took is no idleness.
        self.handle.activity().touch();
        let status = self.handle.status();
        self.handle.publish(match &self.body {
            Body::Running(sandbox) if sandbox.halted().is_some() => {
                let reason = sandbox.halted().map(str::to_owned);
                status.without_vm(State::Pausing, reason)
            }
            Body::Running(sandbox) => sandbox.describe(Status {
                state: status.state.after(event).unwrap_or(State::Running),
                reason: None,
                timeout: sandbox.config().timeout,
                auto_paused: false,
                timings: Some(sandbox.timings()),
                ..status
            }),
            Body::Paused(paused) => Status {
                timeout: paused.config().timeout,
                auto_paused: paused.auto_paused(),
                ..status.without_vm(State::Paused, paused.reason().map(str::to_owned))
            },
            Body::Broken(remains) => Status {
                timeout: remains.config().timeout,
                created_at: remains.created_at().to_owned(),
                ..status.without_vm(State::Error, Some(remains.reason().to_owned()))
            },
        });
    }
}

fn left_as<S: Running>(left: AfterPause<S>) -> (Body<S>, Event) {
    match left {
        AfterPause::Running(sandbox) => (Body::Running(sandbox), Event::PauseFailed),
        AfterPause::Broken(remains) => (Body::Broken(remains), Event::Failed),
    }
}

/// Ends when a sandbox has been idle for longer than it may be.
async fn expired(handle: &SandboxHandle, timeout: Duration) {
    if timeout.is_zero() {
        return std::future::pending().await;
    }
    while handle.activity().idle() <= timeout {
        tokio::time::sleep(LOOK).await;
    }
}

/// The next request. Handles that are all gone can ask for nothing: the sandbox is left.
async fn asked(requests: &mut mpsc::Receiver<Request>) -> Work {
    requests.recv().await.map_or(Work::Leave, Work::Asked)
}

/// Answers whoever still listens.
fn answer<T>(reply: oneshot::Sender<T>, result: T) {
    drop(reply.send(result));
}
