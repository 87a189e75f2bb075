//! The rules: what may be done to a sandbox, and in which order row and host learn of it.
//!
//! | file | what |
//! |---|---|
//! | `operation` | the frame of every change: row first, then host, then row, on its own task |
//! | `create` | a sandbox from a template |
//! | `lifecycle` | pause, resume, ping, destroy, changes |
//! | `fork` | children of a sandbox |
//! | `snapshots` | snapshots and templates |
//! | `orphans` | sandboxes that no row describes |
//! | `access` | API keys, sessions, tickets |
//! | `events` | what changed, for those who listen |
//! | `validate` | bounds of what callers send |
//! | `error` | why something was not done |
//!
//! A change runs to its end on a task of its own; the connection only waits for it. Its row is
//! written before its host is called, so that a server that dies in between leaves a row that
//! the reconciler settles.

pub(crate) mod access;
pub(crate) mod create;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod fork;
pub(crate) mod lifecycle;
pub(crate) mod operation;
pub(crate) mod orphans;
pub(crate) mod snapshots;
pub(crate) mod validate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wrenn_api::id::{HostId, SandboxId, TeamId};
use wrenn_api::status::Status;

use crate::clock::Clock;
use crate::config::Settings;
use crate::hosts::HostPool;
use crate::hosts::client::HostClient;
use crate::store::{SandboxRecord, Store};
use access::Access;
use error::ServiceError;
use events::Events;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) hosts: HostPool,
    pub(crate) events: Events,
    pub(crate) access: Access,
    /// The team of a server that one person uses.
    pub(crate) default_team: TeamId,
    /// This run of the server.
    pub(crate) instance: String,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    operations: Mutex<HashMap<SandboxId, u32>>,
}

impl App {
    pub(crate) fn new(parts: AppParts) -> Self {
        Self {
            settings: parts.settings,
            clock: parts.clock,
            store: parts.store,
            hosts: parts.hosts,
            events: Events::default(),
            access: Access::default(),
            default_team: parts.default_team,
            instance: crate::store::random_instance(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            operations: Mutex::new(HashMap::new()),
        }
    }

    /// A sandbox of a team, by id or name.
    pub(crate) async fn sandbox(
        &self,
        team: &TeamId,
        reference: &str,
    ) -> Result<SandboxRecord, ServiceError> {
        // What cannot be an id or a name is not there; nothing is looked up.
        let found = if reference.len() <= validate::MAX_NAME_CHARS {
            self.store.sandbox(team, reference).await?
        } else {
            None
        };
        found.ok_or_else(|| ServiceError::sandbox_not_found(reference))
    }

    /// A sandbox that runs, and the client of its host.
    pub(crate) async fn running(
        &self,
        team: &TeamId,
        reference: &str,
    ) -> Result<(SandboxRecord, HostClient), ServiceError> {
        let sandbox = self.sandbox(team, reference).await?;
        match sandbox.usable_status() {
            Status::Running => {}
            Status::Missing => {
                return Err(ServiceError::HostUnavailable {
                    after_change: false,
                });
            }
            status => return Err(ServiceError::wrong_status(&sandbox.id, status)),
        }
        let host = self.host(&sandbox.host)?;
        Ok((sandbox, host))
    }

    pub(crate) fn host(&self, id: &HostId) -> Result<HostClient, ServiceError> {
        self.hosts.get(id).ok_or(ServiceError::HostUnavailable {
            after_change: false,
        })
    }

    /// Marks a sandbox as being worked on: the reconciler leaves it alone meanwhile.
    pub(crate) fn working_on(self: &Arc<Self>, id: &SandboxId) -> Operation {
        *self.operations().entry(id.clone()).or_insert(0) += 1;
        Operation {
            app: Arc::clone(self),
            id: id.clone(),
        }
    }

    /// Whether an operation works on a sandbox.
    pub(crate) fn is_worked_on(&self, id: &SandboxId) -> bool {
        self.operations().contains_key(id)
    }

    fn operations(&self) -> MutexGuard<'_, HashMap<SandboxId, u32>> {
        self.operations
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What an [`App`] is made of.
#[derive(Debug)]
pub(crate) struct AppParts {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) hosts: HostPool,
    pub(crate) default_team: TeamId,
}

/// An operation on a sandbox that is under way.
#[derive(Debug)]
pub(crate) struct Operation {
    app: Arc<App>,
    id: SandboxId,
}

impl Drop for Operation {
    fn drop(&mut self) {
        let mut operations = self.app.operations();
        if let Some(count) = operations.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                operations.remove(&self.id);
            }
        }
    }
}
