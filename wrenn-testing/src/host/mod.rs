//! The fake host.

mod config;
mod fake;
mod lifecycle;
mod sandbox;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use wrenn_proto::buffa::MessageField;
use wrenn_proto::hostagent::{Snapshot as SnapshotMessage, State};

use crate::calls::Calls;
use crate::clock::Clock;
use crate::faults::Faults;
use crate::guest::{GuestFiles, Isolation};
pub use config::FakeHostBuilder;
pub(crate) use config::HostConfig;
pub use fake::{FakeHost, StartFakeHostError};
pub(crate) use lifecycle::check_id;
pub(crate) use sandbox::{Properties, Sandbox, Token, Visit};

/// What the requests to a fake host share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: HostConfig,
    pub(crate) clock: Clock,
    pub(crate) faults: Faults,
    pub(crate) calls: Calls,
    /// Cancelled when the host is dropped.
    pub(crate) shutdown: CancellationToken,
    program: PathBuf,
    isolation: Isolation,
    /// What the markers of all guests begin with.
    marker: String,
    directory: TempDir,
    number: AtomicU64,
    state: Mutex<HostState>,
}

#[derive(Debug, Default)]
pub(crate) struct HostState {
    pub(crate) root_id: String,
    pub(crate) sandboxes: BTreeMap<String, Arc<Sandbox>>,
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
}

/// A template that was made of a sandbox.
#[derive(Debug)]
pub(crate) struct Snapshot {
    name: String,
    source: String,
    properties: Properties,
    created_at: SystemTime,
    build_id: String,
    files: GuestFiles,
}

/// What sandboxes that are not paused take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) sandboxes: u32,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
}

impl Host {
    pub(crate) fn state(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }
}

impl HostState {
    pub(crate) fn used(&self) -> Used {
        let mut used = Used::default();
        for sandbox in self.sandboxes.values() {
            if matches!(sandbox.state(), State::STATE_PAUSED | State::STATE_ERROR) {
                continue;
            }
            used.sandboxes += 1;
            used.vcpus += sandbox.properties.vcpus;
            used.memory_mib += u64::from(sandbox.properties.memory_mib);
        }
        used
    }
}

impl Snapshot {
    pub(crate) fn describe(&self) -> SnapshotMessage {
        SnapshotMessage {
            name: self.name.clone(),
            source: self.source.clone(),
            template: self.properties.template.clone(),
            resources: MessageField::some(self.properties.resources()),
            created_at: humantime::format_rfc3339_millis(self.created_at).to_string(),
            build_id: self.build_id.clone(),
            // As if its memory had been touched once.
            disk_bytes: 1 << 20,
        }
    }
}

/// Another root directory's identity.
fn random_root_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}
