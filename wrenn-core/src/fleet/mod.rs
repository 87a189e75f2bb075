//! Every sandbox of a host: each on a task of its own, everybody else with a handle.
//!
//! ```text
//!             ┌ Fleet ────────────────────────────────────────────────┐
//!  create ───▶│ admission ─▶ task ──owns──▶ Sandbox or Remains        │
//!  get, list ▶│ map of ids      ▲   ──says──▶ watch: what it is now   │
//!             └─────────────────┼───────────────────┼─────────────────┘
//!                     requests, one at a time       │
//!                               └── SandboxHandle ◀─┘ ──▶ GuestClient (exec, files)
//! ```
//!
//! Steps of a life (create, destroy) run on the sandbox's task. A caller that goes away
//! cuts none of them in two; two that cross each other queue. What only talks to the guest
//! does not pass through the task: a handle gives out the guest's client, with a token of
//! [use](crate::sandbox::InUse) that keeps the sandbox from counting as idle meanwhile.
//!
//! A fleet that is [left](Fleet::leave), or whose process dies, leaves its sandboxes
//! running; the next [`Fleet::open`] takes them over.

mod admission;
mod handle;
mod status;
mod task;

pub use admission::{Limits, Refusal, Reserved};
pub use handle::{DestroyRefused, GuestLease, NotRunning, SandboxHandle};
pub use status::Status;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::SandboxId;
use crate::sandbox::{
    AdoptError, Adopted, CreateSandboxError, Host, Keep, SandboxConfig, SweepError,
};
use admission::Admission;

/// The sandboxes of one host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fleet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    host: Host,
    admission: Admission,
    sandboxes: Mutex<BTreeMap<SandboxId, SandboxHandle>>,
    tasks: TaskTracker,
}

/// Why a host's sandboxes could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum OpenFleetError {
    /// They could not be found.
    #[error("cannot look for sandboxes that outlived their owner")]
    Orphans(#[from] SweepError),
}

/// Why a sandbox is not there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CreateError {
    /// There is another of this id.
    #[error("sandbox {0} exists already, and was asked for with other properties")]
    Exists(SandboxId),
    /// The host is full.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A step failed. Shared, since many may have waited for it.
    #[error(transparent)]
    Failed(#[from] Arc<CreateSandboxError>),
    /// It was destroyed before it was ready.
    #[error("sandbox {0} was destroyed while it was created")]
    Destroyed(SandboxId),
}

impl Fleet {
    /// Takes over every sandbox on the host that outlived its owner.
    ///
    /// # Errors
    /// When they cannot be found. One that cannot be taken over is left as it is, and
    /// said in the log.
    pub async fn open(host: Host, limits: Limits) -> Result<Self, OpenFleetError> {
        let orphans = host.orphans().await?;
        let fleet = Self(Arc::new(Shared {
            host,
            admission: Admission::new(limits),
            sandboxes: Mutex::new(BTreeMap::new()),
            tasks: TaskTracker::new(),
        }));
        let found = orphans.into_iter().map(|id| {
            let host = fleet.0.host.clone();
            async move { (host.adopt(id.clone()).await, id) }
        });
        for (adopted, id) in futures::future::join_all(found).await {
            match adopted {
                Ok(adopted) => fleet.take_in(adopted),
                Err(AdoptError::Owned(id)) => {
                    info!(sandbox_id = %id, "belongs to another program on this host");
                }
                Err(error) => warn!(sandbox_id = %id, %error, "left as it is"),
            }
        }
        Ok(fleet)
    }

    fn take_in(&self, adopted: Adopted) {
        let (config, created_at) = match &adopted {
            Adopted::Running(sandbox) => (sandbox.config(), sandbox.created_at().to_owned()),
            Adopted::Broken(remains) => (remains.config(), remains.created_at().to_owned()),
        };
        // What runs already is counted, whatever the limits say today.
        let reserved = match &adopted {
            Adopted::Running(_) => Some(self.0.admission.count(config.resources)),
            Adopted::Broken(_) => None,
        };
        let id = config.id.clone();
        let (handle, requests) = SandboxHandle::new(config, created_at);
        self.lock().insert(id, handle.clone());
        let task = task::adopted(handle, adopted, reserved, requests, self.forget());
        self.0.tasks.spawn(task);
    }

    /// Creates a sandbox that lasts until it is destroyed, and waits until commands can run
    /// in it. The same request again gives the same sandbox, or waits for it.
    ///
    /// # Errors
    /// When the host is full, the id is taken by another, or a step fails; nothing is left
    /// behind then.
    ///
    /// # Cancel safety
    /// The creation goes on without the future.
    pub async fn create(&self, config: SandboxConfig) -> Result<SandboxHandle, CreateError> {
        let config = SandboxConfig {
            keep: Keep::UntilDestroyed,
            ..config
        };
        let handle = self.begin(config)?;
        handle.created().await
    }

    /// Finds the sandbox of this id, or begins to make it.
    fn begin(&self, config: SandboxConfig) -> Result<SandboxHandle, CreateError> {
        let mut sandboxes = self.lock();
        if let Some(present) = sandboxes.get(&config.id) {
            return if present.asked() == &config {
                Ok(present.clone())
            } else {
                Err(CreateError::Exists(config.id))
            };
        }
        let reserved = self
            .0
            .admission
            .admit(config.resources, self.0.host.root())?;
        let created_at = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        let (handle, requests) = SandboxHandle::new(config.clone(), created_at);
        sandboxes.insert(config.id.clone(), handle.clone());
        drop(sandboxes);
        let host = self.0.host.clone();
        let creation = async move { host.create(config).await };
        let task = task::created(handle.clone(), creation, reserved, requests, self.forget());
        self.0.tasks.spawn(task);
        Ok(handle)
    }

    /// The sandbox of this id.
    #[must_use]
    pub fn get(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.lock().get(id).cloned()
    }

    /// All sandboxes, by id.
    #[must_use]
    pub fn list(&self) -> Vec<SandboxHandle> {
        self.lock().values().cloned().collect()
    }

    /// The host that they are on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// What is taken of the host, and what there is.
    #[must_use]
    pub fn reserved(&self) -> (Reserved, Limits) {
        self.0.admission.reserved()
    }

    /// Goes away and leaves every sandbox as it is, for the next to take over. Steps that
    /// have begun are finished first.
    pub async fn leave(self) {
        for handle in self.list() {
            handle.leave().await;
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.host.settled().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SandboxId, SandboxHandle>> {
        self.0
            .sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a sandbox that is no more out of the map.
    fn forget(&self) -> impl FnOnce(&SandboxId) + Send + 'static {
        let fleet = self.clone();
        move |id| {
            fleet.lock().remove(id);
        }
    }
}
