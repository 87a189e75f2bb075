//! What can be asked of a sandbox.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::SandboxId;
use crate::network::EgressPolicy;
use crate::vm::Resources;

/// What a sandbox is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Its id; a new one unless set.
    pub id: SandboxId,
    /// The template that it is made from.
    pub template: String,
    /// Id of the kernel that boots it; its template's unless set.
    pub kernel: Option<String>,
    /// Its size.
    pub resources: Resources,
    /// Environment of every command, on top of the template's.
    pub env: BTreeMap<String, String>,
    /// Who may use the daemon in its guest.
    pub access: GuestAccess,
    /// What its guest may connect to.
    pub egress: EgressPolicy,
    /// How long it lasts.
    pub keep: Keep,
    /// How long it may be idle before it is paused; zero for any length. Whole seconds.
    pub timeout: Duration,
    /// What its owner wants to remember of it.
    pub metadata: BTreeMap<String, String>,
}

/// Who may use the daemon in a guest, root's rights included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestAccess {
    /// Who has the token that was made for this sandbox.
    #[default]
    Token,
    /// Everybody who can reach it: this host, and what runs in the guest itself.
    Open,
}

/// How long a sandbox lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// As long as the process that owns it: when that dies, the kernel kills the VM.
    #[default]
    WhileOwned,
    /// Until somebody destroys it. It survives its owner, and is taken over by the next.
    UntilDestroyed,
}

impl SandboxConfig {
    /// A sandbox of the default size from the template of this name.
    #[must_use]
    pub fn from_template(name: impl Into<String>) -> Self {
        Self {
            id: SandboxId::random(),
            template: name.into(),
            kernel: None,
            resources: Resources::default(),
            env: BTreeMap::new(),
            access: GuestAccess::default(),
            egress: EgressPolicy::default(),
            keep: Keep::default(),
            timeout: Duration::ZERO,
            metadata: BTreeMap::new(),
        }
    }
}
