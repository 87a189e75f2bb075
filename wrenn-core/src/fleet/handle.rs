//! What everybody but its owner holds of a sandbox.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{CreateError, Refusal, Status};
use crate::SandboxId;
use crate::guest::GuestClient;
use crate::network::{EgressPolicy, SlotCounters};
use crate::sandbox::{
    Activity, ChangeEgressError, DestroyError, Frozen, InUse, PauseError, RecordError, ResumeError,
    SandboxConfig, State,
};

/// Requests that may wait for a sandbox's task. More only wait longer to be sent.
const QUEUE: usize = 16;

/// What can be asked of a sandbox's task.
#[derive(Debug)]
pub(super) enum Request {
    SetTimeout(Duration, oneshot::Sender<Result<(), RecordError>>),
    SetEgress(EgressPolicy, oneshot::Sender<Result<(), ChangeEgressError>>),
    Traffic(oneshot::Sender<Option<SlotCounters>>),
    Pause(oneshot::Sender<Result<(), PauseRefused>>),
    Resume(Option<Duration>, oneshot::Sender<Result<(), ResumeRefused>>),
    Freeze(oneshot::Sender<Result<Frozen, FreezeRefused>>),
    Acknowledge(oneshot::Sender<Result<(), RecordError>>),
}

/// A sandbox of a fleet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SandboxHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asked: SandboxConfig,
    activity: Activity,
    status: watch::Sender<Status>,
    /// Why it was never there, once that is known.
    failure: OnceLock<CreateError>,
    requests: mpsc::Sender<Request>,
    /// Cancelled once it is to be destroyed. It is no request: those wait until the operation
    /// before them has ended, and a destroy cancels an operation that waits for a guest.
    destroy: CancellationToken,
    /// Cancelled when its task has ended.
    ended: CancellationToken,
    /// Resources that its destruction could not release.
    not_released: OnceLock<Arc<DestroyError>>,
}

/// The client of a guest's daemon, lent out: the sandbox counts as in use meanwhile.
#[derive(Debug)]
pub struct GuestLease {
    /// The client.
    pub guest: GuestClient,
    /// To be kept for as long as the client is used.
    pub in_use: InUse,
}

/// The sandbox does not run.
#[derive(Clone, Debug, thiserror::Error)]
#[error("sandbox {id} is {state}{}, and commands run only in one that is running", because(.reason))]
pub struct NotRunning {
    /// The sandbox.
    pub id: SandboxId,
    /// Where it is in its life.
    pub state: State,
    /// Why it broke, if it did.
    pub reason: Option<String>,
}

/// Why a sandbox was not destroyed, or not all of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DestroyRefused {
    /// It is destroyed, but some of its resources are not released.
    #[error(
        "sandbox {id} is destroyed, but some of its resources are not released; the next start \
         tries again"
    )]
    InPart {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Arc<DestroyError>,
    },
    /// Its fleet was left before.
    #[error("sandbox {0} was not destroyed, because this program ends; try again once it is back")]
    Left(SandboxId),
}

/// Why a sandbox was not paused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PauseRefused {
    /// It is nothing that can be paused.
    #[error("sandbox {id} is {state}{}, and only one that is running can be paused", because(.reason))]
    State {
        /// The sandbox.
        id: SandboxId,
        /// Where it is in its life.
        state: State,
        /// Why it broke, if it did.
        reason: Option<String>,
    },
    /// A step failed. Its state says whether it goes on.
    #[error("sandbox {id} could not be paused")]
    Failed {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Arc<PauseError>,
    },
}

/// Why nothing can be made of a sandbox.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FreezeRefused {
    /// There is nothing to make it of.
    #[error("sandbox {id} is {state}{}, and only one that is running or paused can be written down", because(.reason))]
    State {
        /// The sandbox.
        id: SandboxId,
        /// Where it is in its life.
        state: State,
        /// Why it broke, if it did.
        reason: Option<String>,
    },
    /// A step failed. Its state says whether it goes on.
    #[error("sandbox {id} could not be written down")]
    Failed {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Arc<PauseError>,
    },
    /// It is paused, and what it is paused as cannot be opened.
    #[error("what sandbox {id} is paused as cannot be opened")]
    Paused {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Arc<ResumeError>,
    },
}

/// Why a sandbox was not resumed. One that was paused still is, unless its snapshot is gone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResumeRefused {
    /// It is nothing that can be resumed.
    #[error("sandbox {id} is {state}{}, and only one that is paused can be resumed", because(.reason))]
    State {
        /// The sandbox.
        id: SandboxId,
        /// Where it is in its life.
        state: State,
        /// Why it broke, if it did.
        reason: Option<String>,
    },
    /// The host is full.
    #[error(transparent)]
    Full(#[from] Refusal),
    /// Its time-out could not be changed.
    #[error("cannot write down the time-out of sandbox {id}")]
    Timeout {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Arc<RecordError>,
    },
    /// A step failed, and its snapshot was removed meanwhile.
    #[error(
        "sandbox {id} could not be resumed, and its snapshot is gone; its disk is kept until it is destroyed"
    )]
    Broken {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Arc<ResumeError>,
    },
    /// A step failed.
    #[error("sandbox {id} could not be resumed, and is paused as before")]
    Failed {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Arc<ResumeError>,
    },
}

fn because(reason: &Option<String>) -> String {
    reason
        .as_ref()
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default()
}

impl SandboxHandle {
    pub(super) fn new(asked: SandboxConfig) -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let status = watch::Sender::new(Status::pending(asked.timeout));
        let inner = Inner {
            asked,
            activity: Activity::default(),
            status,
            failure: OnceLock::new(),
            requests,
            destroy: CancellationToken::new(),
            ended: CancellationToken::new(),
            not_released: OnceLock::new(),
        };
        (Self(Arc::new(inner)), receiver)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.0.asked.id
    }

    /// What was asked for.
    #[must_use]
    pub fn asked(&self) -> &SandboxConfig {
        &self.0.asked
    }

    /// What it is at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status.borrow().clone()
    }

    /// What it is, and every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    /// Its use, for what counts as such beside what a [`GuestLease`] does.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.0.activity
    }

    /// Lends out the client of its guest's daemon.
    ///
    /// # Errors
    /// When it does not run.
    pub fn guest(&self) -> Result<GuestLease, NotRunning> {
        let status = self.0.status.borrow();
        match &status.guest {
            Some(guest) => Ok(GuestLease {
                guest: guest.clone(),
                in_use: self.0.activity.begin(),
            }),
            None => Err(NotRunning {
                id: self.id().clone(),
                state: status.state,
                reason: status.reason.clone(),
            }),
        }
    }

    /// Waits until it no longer runs, and says what became of it. What waits for an answer
    /// of its guest waits for this as well: a VM that ends closes no connection.
    pub async fn not_running(&self) -> NotRunning {
        let mut changes = self.watch();
        let status = match changes.wait_for(|status| status.guest.is_none()).await {
            Ok(status) => status.clone(),
            Err(_) => self.status(),
        };
        NotRunning {
            id: self.id().clone(),
            state: status.state,
            reason: status.reason,
        }
    }

    /// Waits until it is no longer being created.
    ///
    /// # Errors
    /// When the creation failed, or somebody destroyed it meanwhile.
    pub async fn created(&self) -> Result<Self, CreateError> {
        let mut status = self.watch();
        let reached = status
            .wait_for(|status| status.state != State::Pending)
            .await
            .map_or(State::Stopped, |status| status.state);
        match self.0.failure.get() {
            Some(failure) => Err(failure.clone()),
            None if reached == State::Stopped => Err(CreateError::Destroyed(self.id().clone())),
            None => Ok(self.clone()),
        }
    }

    /// Changes how long it may be idle before it is paused, zero for any length.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub async fn set_timeout(&self, timeout: Duration) -> Result<(), RecordError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::SetTimeout(timeout, reply)).await;
        // A sandbox that has ended meanwhile needs no time-out.
        answer.await.unwrap_or(Ok(()))
    }

    /// Changes what its guest may connect to, at once and as a whole.
    ///
    /// # Errors
    /// When that cannot be done or written down; the old policy holds then.
    pub async fn set_egress(&self, policy: EgressPolicy) -> Result<(), ChangeEgressError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::SetEgress(policy, reply)).await;
        answer.await.unwrap_or(Ok(()))
    }

    /// What its guest has sent and received; `None` where it does not run.
    pub async fn traffic(&self) -> Option<SlotCounters> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Traffic(reply)).await;
        answer.await.ok().flatten()
    }

    /// Writes its memory and disk down and gives back all else that it has of the host. One
    /// that is paused already is no error.
    ///
    /// # Errors
    /// When it does not run, or a step fails; then it goes on, or is broken.
    ///
    /// # Cancel safety
    /// Once asked for, it goes on without the future.
    pub async fn pause(&self) -> Result<(), PauseRefused> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Pause(reply)).await;
        answer
            .await
            .unwrap_or_else(|_| Err(self.status().cannot_pause(self.id())))
    }

    /// Lets it go on where it was paused, with another time-out if one is given. One that
    /// runs already is no error.
    ///
    /// # Errors
    /// When it is not paused, the host is full, or a step fails; then it is paused as before.
    ///
    /// # Cancel safety
    /// Once asked for, it goes on without the future.
    pub async fn resume(&self, timeout: Option<Duration>) -> Result<(), ResumeRefused> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Resume(timeout, reply)).await;
        answer
            .await
            .unwrap_or_else(|_| Err(self.status().cannot_resume(self.id())))
    }

    /// Writes it down as it is at one moment, while it goes on. Others can be made of what
    /// comes out.
    ///
    /// # Errors
    /// When it neither runs nor is paused, or a step fails; then it goes on, or is broken.
    ///
    /// # Cancel safety
    /// Once asked for, it goes on without the future.
    pub async fn freeze(&self) -> Result<Frozen, FreezeRefused> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Freeze(reply)).await;
        answer
            .await
            .unwrap_or_else(|_| Err(self.status().cannot_freeze(self.id())))
    }

    /// Notes that somebody knows that it was paused for being idle.
    ///
    /// # Errors
    /// When that cannot be written down; then it is said again.
    pub async fn acknowledge(&self) -> Result<(), RecordError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Acknowledge(reply)).await;
        answer.await.unwrap_or(Ok(()))
    }

    /// Destroys it, data included, and waits until its resources are released. A creation or
    /// a resume that waits for the guest is cancelled, any other operation ends first, and
    /// requests that are queued are dropped. One that is destroyed already is no error.
    ///
    /// # Errors
    /// When not all of its resources could be released, though it is gone; or when its fleet
    /// was left before.
    ///
    /// # Cancel safety
    /// Once asked for, it goes on without the future.
    pub async fn destroy(&self) -> Result<(), DestroyRefused> {
        self.0.destroy.cancel();
        self.0.ended.cancelled().await;
        let id = self.id().clone();
        match self.0.not_released.get() {
            Some(source) => Err(DestroyRefused::InPart {
                id,
                source: Arc::clone(source),
            }),
            None if self.status().state == State::Stopped => Ok(()),
            None => Err(DestroyRefused::Left(id)),
        }
    }

    /// Cancelled once it is to be destroyed.
    pub(super) fn destroy_asked(&self) -> &CancellationToken {
        &self.0.destroy
    }

    /// Has everybody who waits for the end of its task told when this is dropped.
    pub(super) fn task_guard(&self) -> DropGuard {
        self.0.ended.clone().drop_guard()
    }

    pub(super) fn note_not_released(&self, error: Arc<DestroyError>) {
        // Only its task says so, and only once.
        drop(self.0.not_released.set(error));
    }

    /// Sends a request. If the task has ended, the reply's other end is dropped with it.
    async fn ask(&self, request: Request) {
        drop(self.0.requests.send(request).await);
    }

    pub(super) fn publish(&self, status: Status) {
        self.0.status.send_replace(status);
    }

    /// Says that it will never be there, and why.
    pub(super) fn publish_failure(&self, failure: CreateError) {
        // Only its task says so, and only once.
        drop(self.0.failure.set(failure));
        self.publish(self.status().without_vm(State::Stopped, None));
    }
}
