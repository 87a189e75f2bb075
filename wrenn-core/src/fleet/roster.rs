//! Who is there: the map of sandboxes, their tasks, and what is promised to them. It does
//! not know how a sandbox is made, so that tests can make them of anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Reservation};
use super::driven::{PausedSandbox as _, Running};
use super::{CreateError, FleetEvent, Limits, Refusal, Reserved, SandboxHandle, task};
use crate::sandbox::{Adopted, CreateSandboxError, SandboxConfig};
use crate::vm::Resources;
use crate::{RootDirectory, SandboxId};

/// Events that a slow reader may lag behind.
const EVENTS: usize = 1024;

#[derive(Clone, Debug)]
pub(super) struct Roster(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    admission: Admission,
    sandboxes: Mutex<BTreeMap<SandboxId, SandboxHandle>>,
    tasks: TaskTracker,
    left: CancellationToken,
    events: broadcast::Sender<FleetEvent>,
}

impl Roster {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared {
            admission: Admission::new(limits),
            sandboxes: Mutex::new(BTreeMap::new()),
            tasks: TaskTracker::new(),
            left: CancellationToken::new(),
            events: broadcast::Sender::new(EVENTS),
        }))
    }

    /// Takes in what was adopted, and waits until its state is known. Its guest is not waited
    /// for.
    pub(super) async fn take_in<S: Running>(&self, adopted: Adopted<S, S::Paused>) {
        let config = match &adopted {
            Adopted::Running(sandbox) => sandbox.config(),
            Adopted::Paused(paused) => paused.config(),
            Adopted::Broken(remains) => remains.config(),
        };
        // What runs already is counted, whatever the limits say today.
        let reserved = match &adopted {
            Adopted::Running(_) => Some(self.0.admission.count(config.resources)),
            Adopted::Paused(_) | Adopted::Broken(_) => None,
        };
        let id = config.id.clone();
        let (handle, requests) = SandboxHandle::new(config);
        self.lock().insert(id.clone(), handle.clone());
        let task = task::adopted(handle.clone(), adopted, reserved, requests, self.clone());
        self.0.tasks.spawn(task);
        // It is not created any more, so this waits for the task's first word only.
        drop(handle.created().await);
        self.tell(FleetEvent::TakenOver(id));
    }

    /// Finds the sandbox of this id, or begins to make it by `create`.
    /// A creation ends early when its token is cancelled, and has released all that it made
    /// once it has failed.
    pub(super) fn begin<S: Running, F>(
        &self,
        config: SandboxConfig,
        root: &RootDirectory,
        create: impl FnOnce(SandboxConfig, CancellationToken) -> F,
    ) -> Result<SandboxHandle, CreateError>
    where
        F: Future<Output = Result<S, CreateSandboxError>> + Send + 'static,
    {
        let mut sandboxes = self.lock();
        if let Some(present) = sandboxes.get(&config.id) {
            return if same_request(present.asked(), &config) {
                Ok(present.clone())
            } else {
                Err(CreateError::Exists(config.id))
            };
        }
        let reserved = self.0.admission.admit(config.resources, root)?;
        let (handle, requests) = SandboxHandle::new(config.clone());
        sandboxes.insert(config.id.clone(), handle.clone());
        drop(sandboxes);
        let creation = create(config, handle.destroy_asked().clone());
        let task = task::created(handle.clone(), creation, reserved, requests, self.clone());
        self.0.tasks.spawn(task);
        Ok(handle)
    }

    pub(super) fn get(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.lock().get(id).cloned()
    }

    pub(super) fn list(&self) -> Vec<SandboxHandle> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn events(&self) -> broadcast::Receiver<FleetEvent> {
        self.0.events.subscribe()
    }

    pub(super) fn reserved(&self) -> (Reserved, Limits) {
        self.0.admission.reserved()
    }

    /// Leaves every sandbox as it is, once what has begun is finished.
    pub(super) async fn leave(&self) {
        self.0.left.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Ends once the fleet is left.
    pub(super) async fn left(&self) {
        self.0.left.cancelled().await;
    }

    /// Promises what a sandbox needs that is to run again.
    pub(super) fn admit(
        &self,
        resources: Resources,
        root: &RootDirectory,
    ) -> Result<Reservation, Refusal> {
        self.0.admission.admit(resources, root)
    }

    /// Whether there is as much room on the disk as one that is created needs.
    pub(super) fn disk_room(&self, root: &RootDirectory) -> Result<(), Refusal> {
        self.0.admission.disk_room(root)
    }

    /// Does this in the background, until the fleet is left.
    pub(super) fn accompany(&self, work: impl Future<Output = ()> + Send + 'static) {
        let left = self.0.left.clone();
        self.0.tasks.spawn(async move {
            let _ended = left.run_until_cancelled(work).await;
        });
    }

    /// Takes a sandbox that is no more out of the map.
    pub(super) fn forget(&self, id: &SandboxId) {
        self.lock().remove(id);
    }

    pub(super) fn tell(&self, event: FleetEvent) {
        // Nobody may listen.
        drop(self.0.events.send(event));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SandboxId, SandboxHandle>> {
        self.0
            .sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two requests are one, made again. The time-out is no part of it: it may have
/// been changed since, and a later owner knows only the last one.
fn same_request(first: &SandboxConfig, second: &SandboxConfig) -> bool {
    let second = SandboxConfig {
        timeout: first.timeout,
        ..second.clone()
    };
    *first == second
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
