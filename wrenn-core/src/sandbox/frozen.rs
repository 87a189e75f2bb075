//! A sandbox at one moment, on disk: what others are made of, again and again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::directory::SandboxDirectory;
use super::disk::DiskRecord;
use super::record::{GuestSetup, SandboxRecord};
use super::{SandboxConfig, references};
use crate::SandboxId;
use crate::snapshot::{BuildId, Snapshot};
use crate::vm::Resources;

/// A sandbox at one moment. Its build is kept from being removed while this lives.
#[derive(Clone, Debug)]
pub struct Frozen {
    pub(super) record: FrozenRecord,
    source: SandboxConfig,
    _build: Arc<Snapshot>,
}

/// The same, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FrozenRecord {
    pub(super) build: BuildId,
    pub(super) resources: Resources,
    pub(super) disk: Option<DiskRecord>,
    /// SHA-256 of the image that its disk lies over.
    pub(super) image: Option<String>,
    /// What holds for every command: of its template, and what was asked for on top.
    pub(super) setup: GuestSetup,
    /// The access token that its guest knows.
    pub(super) token: Option<String>,
}

impl Frozen {
    pub(super) fn of(
        record: &SandboxRecord,
        directory: &SandboxDirectory,
        build: Snapshot,
    ) -> Self {
        let mut setup = record.setup.clone();
        setup.env.extend(record.env.clone());
        Self {
            record: FrozenRecord {
                build: build.id().clone(),
                resources: record.resources,
                disk: record.disk.clone(),
                image: references::image(directory.path()).ok().flatten(),
                setup,
                token: record.token.clone(),
            },
            source: record.config(),
            _build: Arc::new(build),
        }
    }

    /// The build that holds it.
    #[must_use]
    pub fn build(&self) -> &BuildId {
        &self.record.build
    }

    /// The sandbox that it was.
    #[must_use]
    pub fn source(&self) -> &SandboxConfig {
        &self.source
    }

    /// A sandbox of this id, in all else as the one that it was.
    #[must_use]
    pub fn child(&self, id: SandboxId) -> SandboxConfig {
        SandboxConfig {
            id,
            ..self.source.clone()
        }
    }
}
