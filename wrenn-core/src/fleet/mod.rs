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
//! Operations (create, pause, resume, destroy) run on the sandbox's task. A caller that goes away
//! cuts none of them in two; two that cross each other queue. A destroy does not: it cancels a
//! creation or a resume that waits for its guest. What only talks to the guest
//! does not pass through the task: a handle gives out the guest's client, with a token of
//! [use](crate::sandbox::InUse) that keeps the sandbox from counting as idle meanwhile.
//!
//! A sandbox that has a time-out and was idle for longer is paused by its task. A paused one
//! has no share of the host; whether it can have one again is asked when it is resumed. A
//! share lasts until the VM has ended and its resources are released, so there are never more
//! VMs than were admitted.
//!
//! A fleet that is [left](Fleet::leave), or whose process dies, leaves its sandboxes
//! running; the next [`Fleet::open`] adopts them, and waits for none of their guests.

mod admission;
mod compaction;
mod driven;
mod event;
#[cfg(test)]
mod fakes;
mod handle;
mod roster;
mod status;
mod task;
#[cfg(test)]
mod task_tests;
mod upkeep;

pub use admission::{Limits, Refusal, Reserved};
pub use event::FleetEvent;
pub use handle::{
    DestroyRefused, FreezeRefused, GuestLease, NotRunning, PauseRefused, ResumeRefused,
    SandboxHandle,
};
pub use status::Status;

use std::sync::Arc;

use futures::StreamExt as _;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::sandbox::{
    AdoptError, CreateSandboxError, Frozen, Host, Keep, SandboxConfig, State, SweepError,
};
use crate::template::Template;
use crate::{Chain, RootDirectory, SandboxId};
use roster::Roster;

/// How many sandboxes are paused at once where all are: each reads and writes all of its
/// memory.
const PAUSED_AT_ONCE: usize = 4;

/// How many sandboxes are adopted at once: each opens a network namespace and devices.
const ADOPTED_AT_ONCE: usize = 16;

/// The sandboxes of one host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fleet {
    host: Option<Host>,
    root: RootDirectory,
    roster: Roster,
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
        let roster = Roster::new(limits);
        let found = orphans.into_iter().map(|id| {
            let host = host.clone();
            async move { (host.adopt(id.clone()).await, id) }
        });
        let mut found = futures::stream::iter(found).buffer_unordered(ADOPTED_AT_ONCE);
        while let Some((adopted, id)) = found.next().await {
            match adopted {
                Ok(adopted) => roster.take_in(adopted).await,
                Err(AdoptError::Owned(id)) => {
                    info!(sandbox_id = %id, "belongs to another program on this host");
                }
                Err(error) => warn!(sandbox_id = %id, %error, "left as it is"),
            }
        }
        drop(found);
        roster.accompany(collect_builds(host.clone(), roster.events()));
        Ok(Self {
            root: host.root().clone(),
            host: Some(host),
            roster,
        })
    }

    /// A fleet that has no host and cannot create, for tests of what lies above: it needs
    /// neither root nor KVM, and knows the templates of `root`.
    #[must_use]
    pub fn without_host(root: RootDirectory, limits: Limits) -> Self {
        Self {
            host: None,
            root,
            roster: Roster::new(limits),
        }
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
        let (host, root) = (self.host.clone(), self.root.clone());
        let create = |config: SandboxConfig, cancelled: CancellationToken| async move {
            match host {
                Some(host) => host.create_unless(config, &cancelled).await,
                None => {
                    Template::open(&root, &config.template)?;
                    Err(CreateSandboxError::NoHost)
                }
            }
        };
        let handle = self.roster.begin(config, &self.root, create)?;
        handle.created().await
    }

    /// Creates a sandbox that goes on where another was frozen. Otherwise as
    /// [`Fleet::create`].
    ///
    /// # Errors
    /// When the host is full, the id is taken by another, or a step fails; nothing is left
    /// behind then.
    ///
    /// # Cancel safety
    /// The creation goes on without the future.
    pub async fn create_from(
        &self,
        frozen: &Frozen,
        config: SandboxConfig,
    ) -> Result<SandboxHandle, CreateError> {
        let config = SandboxConfig {
            keep: Keep::UntilDestroyed,
            ..config
        };
        let (host, frozen) = (self.host.clone(), frozen.clone());
        let create = |config: SandboxConfig, cancelled: CancellationToken| async move {
            let host = host.ok_or(CreateSandboxError::NoHost)?;
            host.create_from_unless(&frozen, config, &cancelled).await
        };
        let handle = self.roster.begin(config, &self.root, create)?;
        handle.created().await
    }

    /// The sandbox of this id.
    #[must_use]
    pub fn get(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.roster.get(id)
    }

    /// All sandboxes, by id.
    #[must_use]
    pub fn list(&self) -> Vec<SandboxHandle> {
        self.roster.list()
    }

    /// Pauses every sandbox that runs, a few at a time, and says which could not be.
    pub async fn pause_all(&self) -> Vec<(SandboxId, Result<(), PauseRefused>)> {
        let running = self.list().into_iter().filter(|sandbox| {
            let state = sandbox.status().state;
            matches!(state, State::Running | State::Pausing)
        });
        futures::stream::iter(running)
            .map(|sandbox| async move {
                let paused = sandbox.pause().await;
                (sandbox.id().clone(), paused)
            })
            .buffer_unordered(PAUSED_AT_ONCE)
            .collect()
            .await
    }

    /// Removes builds that nobody needs any more, after a snapshot was deleted. What goes
    /// wrong is said in the log; the next collection tries again.
    pub async fn collect_builds(&self) {
        if let Some(host) = &self.host {
            collect_once(host).await;
        }
    }

    /// What happens to its sandboxes from now on. Who reads too slowly misses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<FleetEvent> {
        self.roster.events()
    }

    /// Where everything lies.
    #[must_use]
    pub fn root(&self) -> &RootDirectory {
        &self.root
    }

    /// What is taken of the host, and what there is.
    #[must_use]
    pub fn reserved(&self) -> (Reserved, Limits) {
        self.roster.reserved()
    }

    /// Goes away and leaves every sandbox as it is, for the next fleet to adopt. Operations
    /// that have begun are finished first, and those that are queued are not begun; a guest is
    /// waited for until its boot deadline.
    pub async fn leave(self) {
        self.roster.leave().await;
        if let Some(host) = &self.host {
            host.settled().await;
        }
    }
}

/// Removes builds that nobody needs: those that an earlier fleet left, and each time that a
/// sandbox stops needing some.
async fn collect_builds(host: Host, mut events: broadcast::Receiver<FleetEvent>) {
    loop {
        collect_once(&host).await;
        loop {
            match events.recv().await {
                Ok(FleetEvent::Destroyed(_) | FleetEvent::Paused(..) | FleetEvent::Resumed(..))
                | Err(RecvError::Lagged(_)) => break,
                Ok(_) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}

async fn collect_once(host: &Host) {
    match host.collect_builds().await {
        Ok(collected) if collected.is_empty() => {}
        Ok(collected) => info!(builds = collected.len(), "removed builds that nobody needs"),
        Err(error) => warn!(error = %Chain(&error), "builds that nobody needs stay"),
    }
}
