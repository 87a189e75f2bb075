//! Where everything of a host lies.
//!
//! ```text
//! <root>/kernels/<kernel id>/kernel.json, vmlinux, vmlinuz, initrd.img
//! <root>/templates/<name>/template.json, <SHA-256>.ext4
//! <root>/imports/<random>/               a template that is being made
//! <root>/sandboxes/<sandbox id>/         see [`crate::sandbox`]
//! <root>/snapshots/builds/<build id>/    see [`crate::snapshot`]
//! <root>/snapshots/named/<name>.json     templates that are frozen machines
//! <root>/snapshots/working-sets/<build id>
//! <root>/network/slots/<number>
//! ```

use std::path::{Path, PathBuf};

use crate::SandboxId;

/// The one directory from which every other path of a host is derived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDirectory(PathBuf);

impl RootDirectory {
    /// Where a host keeps its files unless told otherwise.
    pub const DEFAULT: &'static str = "/var/lib/wrenn";

    /// The directory at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Kernels, one directory each.
    #[must_use]
    pub fn kernels(&self) -> PathBuf {
        self.0.join("kernels")
    }

    /// Templates, one directory each.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.0.join("templates")
    }

    /// What snapshots are made of.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.0.join("snapshots")
    }

    /// Builds of snapshots, one directory each.
    #[must_use]
    pub fn builds(&self) -> PathBuf {
        self.snapshots().join("builds")
    }

    /// Snapshots that have a name, one file each.
    #[must_use]
    pub fn named_snapshots(&self) -> PathBuf {
        self.snapshots().join("named")
    }

    /// What guests needed first when they were restored, one file for each build.
    pub(crate) fn working_sets(&self) -> PathBuf {
        self.snapshots().join("working-sets")
    }

    /// Sandboxes, one directory each.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.0.join("sandboxes")
    }

    /// Locked by whoever changes kernels or templates.
    pub(crate) fn install_lock(&self) -> PathBuf {
        self.0.join(".install.lock")
    }

    /// The directory of one sandbox.
    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }
}

impl Default for RootDirectory {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}
