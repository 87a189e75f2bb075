//! What the daemon knows about its guest, shared by every request.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::AccessToken;
use crate::connections::Connections;
use crate::filesystem::watchers::Watchers;
use crate::metrics::CpuSampler;
use crate::process::GracePeriods;
use crate::process::table::ProcessTable;
use crate::state;

/// What `/init` may change.
#[derive(Debug, Clone)]
pub struct Settings {
    pub access_token: Option<AccessToken>,
    /// Variables that every process gets.
    pub env: BTreeMap<String, String>,
    /// Who a request acts as that names nobody.
    pub default_user: String,
    /// Where a process starts that names no directory; its user's home if absent.
    pub default_workdir: Option<String>,
}

/// One per daemon.
#[derive(Debug)]
pub struct Guest {
    settings: RwLock<Arc<Settings>>,
    /// Where changed settings are kept for the next daemon.
    state_file: Option<PathBuf>,
    pub processes: ProcessTable,
    pub watchers: Watchers,
    pub connections: Connections,
    pub cpu: CpuSampler,
    /// How long it waits for processes and their clients.
    pub grace: GracePeriods,
    /// Everything that outlives the request that started it.
    pub tasks: TaskTracker,
    pub shutdown: CancellationToken,
}

impl Guest {
    pub fn new(settings: Settings, state_file: Option<PathBuf>, grace: GracePeriods) -> Arc<Self> {
        Arc::new(Self {
            settings: RwLock::new(Arc::new(settings)),
            state_file,
            processes: ProcessTable::default(),
            watchers: Watchers::default(),
            connections: Connections::default(),
            cpu: CpuSampler::default(),
            grace,
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        })
    }

    /// The settings as they are now. A request looks once, so that it sees one state.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(
            &self
                .settings
                .read()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        )
    }

    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        let mut current = self
            .settings
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        change(Arc::make_mut(&mut current));
        if let Some(path) = &self.state_file
            && let Err(error) = state::save(path, &current)
        {
            tracing::warn!(path = %path.display(), %error, "cannot keep the settings");
        }
    }
}
