//! What everybody but its owner holds of a sandbox.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::{CreateError, Status};
use crate::SandboxId;
use crate::guest::GuestClient;
use crate::network::{EgressPolicy, SlotCounters};
use crate::sandbox::{
    Activity, ChangeEgressError, DestroyError, InUse, RecordError, SandboxConfig, State,
};

/// Requests that may wait for a sandbox's task. More only wait longer to be sent.
const QUEUE: usize = 16;

/// What can be asked of a sandbox's task.
#[derive(Debug)]
pub(super) enum Request {
    Destroy(oneshot::Sender<Result<(), Arc<DestroyError>>>),
    SetTimeout(Duration, oneshot::Sender<Result<(), RecordError>>),
    SetEgress(EgressPolicy, oneshot::Sender<Result<(), ChangeEgressError>>),
    Traffic(oneshot::Sender<Option<SlotCounters>>),
    Leave,
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

/// Why a sandbox could not be destroyed whole.
#[derive(Clone, Debug, thiserror::Error)]
#[error("sandbox {id} is gone, but not all of it was given back; the next start tries again")]
pub struct DestroyRefused {
    /// The sandbox.
    pub id: SandboxId,
    /// What was left.
    #[source]
    pub source: Arc<DestroyError>,
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

    /// Ends it, data included. One that has ended already is no error.
    ///
    /// # Errors
    /// When not all of it could be given back. It is gone all the same.
    ///
    /// # Cancel safety
    /// Once asked for, it goes on without the future.
    pub async fn destroy(&self) -> Result<(), DestroyRefused> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Destroy(reply)).await;
        answer
            .await
            .unwrap_or(Ok(()))
            .map_err(|source| DestroyRefused {
                id: self.id().clone(),
                source,
            })
    }

    pub(super) async fn leave(&self) {
        self.ask(Request::Leave).await;
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
