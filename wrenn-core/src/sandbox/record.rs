//! `sandbox.json`: what a later program must know to take a sandbox over.
//!
//! Atomically replaced, and synced, at every change of state before the change is told to
//! anybody. It holds the access token, so only root may read it. A sandbox that is being
//! created has none. The builds that it names are [references] as well, which hold them where
//! it was damaged.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atomic_write_file::AtomicWriteFile;
use atomic_write_file::unix::OpenOptionsExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::disk::DiskRecord;
use super::{GuestAccess, Keep, SandboxConfig, State, references};
use crate::SandboxId;
use crate::blocking;
use crate::network::EgressPolicy;
use crate::process::ProcessIdentity;
use crate::snapshot::BuildId;
use crate::template::TemplateManifest;
use crate::vm::Resources;

/// Layout version of the file.
const VERSION: u32 = 1;
const NAME: &str = "sandbox.json";

/// One sandbox, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    version: u32,
    pub(super) id: SandboxId,
    pub(super) template: String,
    /// The kernel that was asked for by name, if one was. Nothing boots from it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kernel: Option<String>,
    pub(super) resources: Resources,
    pub(super) keep: Keep,
    pub(super) access: GuestAccess,
    pub(super) egress: EgressPolicy,
    pub(super) state: State,
    /// Why it is in [`State::Error`], or was paused where nobody asked for it.
    pub(super) reason: Option<String>,
    /// RFC 3339.
    pub(super) created_at: String,
    pub(super) timeout_sec: u64,
    pub(super) env: BTreeMap<String, String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) token: Option<String>,
    pub(super) disk: Option<DiskRecord>,
    /// Number of its network slot.
    pub(super) slot: Option<u16>,
    pub(super) vmm: Option<ProcessIdentity>,
    /// Who feeds its VMM memory, where somebody does.
    #[serde(default)]
    pub(super) pager: Option<ProcessIdentity>,
    /// What its template says about every command.
    #[serde(default)]
    pub(super) setup: GuestSetup,
    /// The build that it is paused as, or was resumed from: its memory is read from there.
    #[serde(default)]
    pub(super) build: Option<BuildId>,
    /// The build since which its VMM knows which pages have changed, or a copy of it with the
    /// same contents. There from a resume on until a snapshot is asked for, after which the
    /// VMM has forgotten them.
    #[serde(default)]
    pub(super) dirty_since: Option<BuildId>,
    /// Whether it is paused because it was idle, and nobody has acknowledged that.
    #[serde(default)]
    pub(super) auto_paused: bool,
}

/// What a template says about its guest's commands, for a guest that comes back when its
/// template may be gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GuestSetup {
    pub(super) env: BTreeMap<String, String>,
    pub(super) default_user: Option<String>,
    pub(super) working_directory: Option<String>,
}

impl GuestSetup {
    pub(super) fn of(template: &TemplateManifest) -> Self {
        Self {
            env: template.env.clone(),
            default_user: Some(template.default_user.clone()),
            working_directory: template.working_directory.clone(),
        }
    }
}

/// Why a record cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It makes no sense.
    #[error("{path} is damaged")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A later version of this program wrote it.
    #[error("{path} has layout {found}, this program knows {known}; use a newer wrenn")]
    Version {
        /// The file.
        path: PathBuf,
        /// The layout that it names.
        found: u32,
        /// The one that is known.
        known: u32,
    },
}

impl RecordError {
    /// Whether this process lacks what reading takes, so that the file may be good.
    pub(super) fn is_passing(&self) -> bool {
        let Self::Read { source, .. } = self else {
            return false;
        };
        let errno = source.raw_os_error();
        [libc::EMFILE, libc::ENFILE, libc::ENOMEM]
            .map(Some)
            .contains(&errno)
    }
}

impl SandboxRecord {
    /// The record of a sandbox whose creation begins now.
    pub(super) fn begin(config: &SandboxConfig, created_at: String) -> Self {
        Self {
            version: VERSION,
            id: config.id.clone(),
            template: config.template.clone(),
            kernel: config.kernel.clone(),
            resources: config.resources,
            keep: config.keep,
            access: config.access,
            egress: config.egress.clone(),
            state: State::Pending,
            reason: None,
            created_at,
            timeout_sec: config.timeout.as_secs(),
            env: config.env.clone(),
            metadata: config.metadata.clone(),
            token: None,
            disk: None,
            slot: None,
            vmm: None,
            pager: None,
            setup: GuestSetup::default(),
            build: None,
            dirty_since: None,
            auto_paused: false,
        }
    }

    /// What was asked for when it was created, or since.
    pub(super) fn config(&self) -> SandboxConfig {
        SandboxConfig {
            id: self.id.clone(),
            template: self.template.clone(),
            kernel: self.kernel.clone(),
            resources: self.resources,
            env: self.env.clone(),
            access: self.access,
            egress: self.egress.clone(),
            keep: self.keep,
            timeout: Duration::from_secs(self.timeout_sec),
            metadata: self.metadata.clone(),
        }
    }

    /// Whether a sandbox's files and VM outlive the program that owned it.
    pub(super) fn outlives_its_owner(&self) -> bool {
        // One that was never finished was promised to nobody, and one that is being
        // destroyed is to go.
        self.keep == Keep::UntilDestroyed && !matches!(self.state, State::Pending | State::Stopped)
    }

    /// Replaces the one in the sandbox's directory. It survives a power cut from then on.
    pub(super) fn write(&self, directory: &Path) -> Result<(), RecordError> {
        let path = directory.join(NAME);
        let written = blocking::in_place(|| {
            let needed: Vec<&BuildId> = self.build.iter().chain(&self.dirty_since).collect();
            for build in &needed {
                references::add_build(directory, build)?;
            }
            let contents = serde_json::to_vec_pretty(self)?;
            let mut file = AtomicWriteFile::options()
                .preserve_mode(false)
                .mode(0o600)
                .open(&path)?;
            file.write_all(&contents)?;
            file.commit()?;
            references::retain_builds(directory, &needed)
        });
        written.map_err(|source| RecordError::Write { path, source })
    }

    /// Reads that of the sandbox's directory; `None` where there is none.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, RecordError> {
        read_versioned(directory.join(NAME), VERSION)
    }
}

/// Reads a JSON object that names the version of its layout; `None` where there is no file.
pub(super) fn read_versioned<T: DeserializeOwned>(
    path: PathBuf,
    known: u32,
) -> Result<Option<T>, RecordError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Read { path, source }),
    };
    // A later layout need not be one that this program could read.
    match serde_json::from_slice::<Versioned>(&bytes) {
        Ok(Versioned { version }) if version == known => {}
        Ok(Versioned { version: found }) => {
            return Err(RecordError::Version { path, found, known });
        }
        Err(source) => return Err(RecordError::Parse { path, source }),
    }
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(source) => Err(RecordError::Parse { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_is_secret() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(SandboxRecord::read(directory.path()).unwrap(), None);
        let config = SandboxConfig::from_template("minimal");
        let mut record = SandboxRecord::begin(&config, "2026-01-02T03:04:05Z".to_owned());
        record.write(directory.path()).unwrap();
        record.state = State::Running;
        record.token = Some("secret".to_owned());
        record.write(directory.path()).unwrap();
        assert_eq!(SandboxRecord::read(directory.path()).unwrap(), Some(record));
        let mode = std::fs::metadata(directory.path().join(NAME))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_record_from_before_there_were_pauses_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let config = SandboxConfig::from_template("minimal");
        let record = SandboxRecord::begin(&config, "2026-01-02T03:04:05Z".to_owned());
        let mut json = serde_json::to_value(&record).unwrap();
        for later in ["setup", "build", "dirty_since", "pager", "auto_paused"] {
            json.as_object_mut().unwrap().remove(later).unwrap();
        }
        std::fs::write(directory.path().join(NAME), json.to_string()).unwrap();
        assert_eq!(SandboxRecord::read(directory.path()).unwrap(), Some(record));
    }

    #[test]
    fn damage_and_a_later_layout_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        std::fs::write(&path, "{\"version\": 1, \"id\"").unwrap();
        let error = SandboxRecord::read(directory.path()).unwrap_err();
        assert!(matches!(error, RecordError::Parse { .. }), "{error}");
        std::fs::write(&path, "{\"version\": 99, \"novelty\": true}").unwrap();
        let error = SandboxRecord::read(directory.path()).unwrap_err();
        assert!(
            matches!(error, RecordError::Version { found: 99, .. }),
            "{error}"
        );
    }
}
