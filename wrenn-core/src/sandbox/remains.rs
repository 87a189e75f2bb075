//! What is kept of a sandbox that broke: its directory, with the disk and the logs in it.

use std::sync::Arc;

use tracing::warn;

use super::directory::SandboxDirectory;
use super::host::Shared;
use super::record::SandboxRecord;
use super::{DestroyError, Keep, Sandbox, SandboxConfig, State, memory, prepare, sweep};
use crate::SandboxId;

/// A broken sandbox. It uses nothing but the room of its files, and nothing runs in it.
#[must_use = "dropping remains leaves the files until somebody asks for them"]
#[derive(Debug)]
pub struct Remains {
    directory: SandboxDirectory,
    record: SandboxRecord,
    /// There where it was not adopted: a VM, a disk and a slot may still be there.
    unadopted: Option<Arc<Shared>>,
}

impl Remains {
    /// Ends what still runs, gives the slot back, and writes down why.
    pub(super) async fn of(sandbox: Sandbox, reason: String) -> Self {
        let Sandbox {
            vm,
            pager,
            disk,
            slot,
            directory,
            record,
            ..
        } = sandbox;
        vm.kill().await;
        memory::end(pager).await;
        // What fails is tried again in the background. What was written stays in the
        // directory, from which the disk can be made again.
        prepare::give_back(Some(disk), Some(slot)).await;
        Self::write(directory, record, reason)
    }

    /// Of a sandbox that has no VM and no slot any more.
    pub(super) fn write(
        mut directory: SandboxDirectory,
        mut record: SandboxRecord,
        reason: String,
    ) -> Self {
        directory.keep();
        record.state = State::Error;
        record.reason = Some(reason);
        record.vmm = None;
        record.pager = None;
        record.slot = None;
        if let Err(error) = record.write(directory.path()) {
            warn!(sandbox_id = %directory.id(), %error, "a broken sandbox");
        }
        Self {
            directory,
            record,
            unadopted: None,
        }
    }

    /// Of a sandbox that cannot be looked at, or whose record cannot be read. All that there is
    /// of it stays as it is: a later program may adopt it.
    pub(super) fn unadopted(
        host: Arc<Shared>,
        mut directory: SandboxDirectory,
        record: Option<SandboxRecord>,
        reason: String,
    ) -> Self {
        directory.keep();
        let mut record = record.unwrap_or_else(|| {
            let config = SandboxConfig {
                id: directory.id().clone(),
                keep: Keep::UntilDestroyed,
                ..SandboxConfig::from_template("")
            };
            SandboxRecord::begin(&config, directory.created_at())
        });
        record.state = State::Error;
        record.reason = Some(reason);
        Self {
            directory,
            record,
            unadopted: Some(host),
        }
    }

    /// What is left of a sandbox that never was.
    #[cfg(test)]
    pub(crate) fn for_tests(root: &crate::RootDirectory, config: &SandboxConfig) -> Self {
        let directory = SandboxDirectory::create(root, config.id.clone()).unwrap();
        let record = SandboxRecord::begin(config, "2026-01-02T03:04:05Z".to_owned());
        Self::write(directory, record, "its VM ended".to_owned())
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        self.directory.id()
    }

    /// What it was made from and to be.
    #[must_use]
    pub fn config(&self) -> SandboxConfig {
        self.record.config()
    }

    /// When its creation began, in RFC 3339.
    #[must_use]
    pub fn created_at(&self) -> &str {
        &self.record.created_at
    }

    /// What broke it.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.record.reason.as_deref().unwrap_or("nobody knows why")
    }

    /// Goes away without it; [`Host::adopt`](super::Host::adopt) finds it again.
    pub fn leave(self) {
        self.directory.leave();
    }

    /// Removes its data.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub async fn destroy(mut self) -> Result<(), DestroyError> {
        self.record.state = State::Stopped;
        if let Err(error) = self.record.write(self.directory.path()) {
            warn!(sandbox_id = %self.id(), %error, "a broken sandbox that is being destroyed");
        }
        let id = self.id().clone();
        if let Some(host) = &self.unadopted {
            sweep::strays(host, &id)
                .await
                .map_err(|source| DestroyError::Orphaned {
                    id: id.clone(),
                    source,
                })?;
        }
        self.directory
            .remove()
            .await
            .map_err(|source| DestroyError::Directory { id, source })
    }
}
