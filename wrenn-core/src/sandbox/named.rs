//! Snapshots that have a name: templates that are frozen machines.
//!
//! ```text
//! <root>/snapshots/named/<name>.json    which build it is, and what must be known of it
//! ```
//!
//! A name is taken once, by whoever comes first; templates that boot are names too. The file
//! holds the token that the frozen guest knows, so only root may read it. Deleting a name
//! removes no data that somebody needs: builds stay as long as a name or a sandbox needs
//! them.

use std::fs::{DirEntry, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::SandboxConfig;
use super::frozen::{Frozen, FrozenRecord};
use super::record::{RecordError, SandboxRecord, read_versioned};
use super::sweep::{self, SweepError};
use crate::snapshot::{BuildId, BuildStore, OpenStoreError};
use crate::template::{Template, is_name};
use crate::vm::Resources;
use crate::{Chain, RootDirectory, SandboxId, crash};

/// Layout version of the file.
const VERSION: u32 = 1;
const SUFFIX: &str = ".json";

/// A snapshot that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedSnapshot {
    version: u32,
    name: String,
    created_at: String,
    source: SandboxId,
    template: String,
    pub(super) frozen: FrozenRecord,
}

/// Why a snapshot has no name.
#[derive(Debug, thiserror::Error)]
pub enum NameSnapshotError {
    /// It cannot have this one.
    #[error(
        "'{0}' is no name of a template: one is made of up to 128 of a-z, 0-9, '.', '_' and '-'"
    )]
    Name(String),
    /// Another has it.
    #[error("there is a template '{0}' already; choose another name, or delete that one")]
    Taken(String),
    /// It cannot be written down.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a snapshot was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteSnapshotError {
    /// There is none of this name.
    #[error("there is no snapshot '{name}' in {directory}")]
    Unknown {
        /// The name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// Its file cannot be removed.
    #[error("cannot remove {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Who needs its build cannot be found out.
    #[error("cannot find out who needs it; nothing was deleted")]
    Users(#[from] SweepError),
    /// The same.
    #[error("cannot open the store of builds; nothing was deleted")]
    Store(#[from] OpenStoreError),
}

impl Frozen {
    /// Gives it a name, as which sandboxes can be created of it from now on. It is on the
    /// disk when this returns.
    ///
    /// # Errors
    /// When the name is taken, or it cannot be written down.
    pub fn name(
        &self,
        root: &RootDirectory,
        name: &str,
    ) -> Result<NamedSnapshot, NameSnapshotError> {
        check_free(root, name)?;
        let named = NamedSnapshot {
            version: VERSION,
            name: name.to_owned(),
            created_at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            source: self.source().id.clone(),
            template: self.source().template.clone(),
            frozen: self.record.clone(),
        };
        let path = path_of(root, name);
        match named.write(&path) {
            Ok(()) => {
                crash::point("snapshot.named");
                Ok(named)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(NameSnapshotError::Taken(name.to_owned()))
            }
            Err(source) => Err(NameSnapshotError::Write { path, source }),
        }
    }
}

/// Refuses a name that a snapshot cannot have, before anybody is stopped for it.
///
/// # Errors
/// When it is none, or another template has it.
pub fn check_free(root: &RootDirectory, name: &str) -> Result<(), NameSnapshotError> {
    if !is_name(name) {
        return Err(NameSnapshotError::Name(name.to_owned()));
    }
    if Template::exists(root, name) || path_of(root, name).exists() {
        return Err(NameSnapshotError::Taken(name.to_owned()));
    }
    Ok(())
}

impl NamedSnapshot {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The build that it is.
    #[must_use]
    pub fn build(&self) -> &BuildId {
        &self.frozen.build
    }

    /// The size of every sandbox that is made of it.
    #[must_use]
    pub fn resources(&self) -> Resources {
        self.frozen.resources
    }

    /// When it was made, in RFC 3339.
    #[must_use]
    pub fn created_at(&self) -> &str {
        &self.created_at
    }

    /// The sandbox that it was.
    #[must_use]
    pub fn source(&self) -> &SandboxId {
        &self.source
    }

    /// The template that this sandbox was made from.
    #[must_use]
    pub fn template(&self) -> &str {
        &self.template
    }

    /// Bytes that its build takes on the disk, without those that it builds upon.
    ///
    /// # Errors
    /// When the build cannot be read.
    pub fn disk_bytes(&self, root: &RootDirectory) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt as _;

        let mut bytes = 0;
        for entry in std::fs::read_dir(root.builds().join(self.frozen.build.as_str()))? {
            bytes += entry?.metadata()?.blocks() * 512;
        }
        Ok(bytes)
    }

    /// The snapshot of this name; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn find(root: &RootDirectory, name: &str) -> Result<Option<Self>, RecordError> {
        if !is_name(name) {
            return Ok(None);
        }
        read(&path_of(root, name))
    }

    /// All of them, by name. One that cannot be read is said in the log.
    ///
    /// # Errors
    /// When their directory cannot be listed.
    pub fn list(root: &RootDirectory) -> Result<Vec<Self>, RecordError> {
        let mut all = Vec::new();
        for path in files(root)? {
            match read(&path) {
                Ok(named) => all.extend(named),
                Err(error) => warn!(error = %Chain(&error), "a snapshot is left out"),
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// All of them; one that cannot be read is an error, since it may name anything.
    pub(super) fn references(root: &RootDirectory) -> Result<Vec<Self>, RecordError> {
        let read = files(root)?
            .iter()
            .map(|path| read(path))
            .collect::<Vec<_>>();
        read.into_iter().filter_map(Result::transpose).collect()
    }

    /// Takes the name away. Returns the sandboxes that still need its build, which stays as
    /// long as they do.
    ///
    /// # Errors
    /// When there is none, or it cannot be removed.
    pub fn delete(root: &RootDirectory, name: &str) -> Result<Vec<SandboxId>, DeleteSnapshotError> {
        let path = path_of(root, name);
        if !is_name(name) || !path.exists() {
            return Err(DeleteSnapshotError::Unknown {
                name: name.to_owned(),
                directory: root.named_snapshots(),
            });
        }
        let users = match read(&path) {
            Ok(Some(named)) => users_of(root, named.build())?,
            // What cannot be read can be deleted all the same.
            Ok(None) | Err(_) => Vec::new(),
        };
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(users),
            Err(source) => Err(DeleteSnapshotError::Remove { path, source }),
        }
    }

    /// Writes it where no file is yet.
    fn write(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory)?;
        let aside = directory.join(format!(".{:016x}", rand::random::<u64>()));
        let written = (|| {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&aside)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE)?;
            File::open(directory)?.sync_all()
        })();
        if written.is_err()
            && let Err(error) = std::fs::remove_file(&aside)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(%error, path = %aside.display(), "stays");
        }
        written
    }
}

/// Sandboxes whose records name this build, or one that was made on top of it.
fn users_of(root: &RootDirectory, build: &BuildId) -> Result<Vec<SandboxId>, DeleteSnapshotError> {
    let store = BuildStore::open(root)?;
    let mut users = Vec::new();
    for id in sweep::directories(root)? {
        // One that cannot be read is no reason to keep a name.
        let Ok(Some(record)) = SandboxRecord::read(&root.sandbox(&id)) else {
            continue;
        };
        let needs = |named: &BuildId| {
            let head = store.head(named);
            head.is_ok_and(|head| head.rows.iter().any(|row| row.id == *build))
        };
        if record.build.iter().chain(&record.dirty_since).any(needs) {
            users.push(id);
        }
    }
    Ok(users)
}

fn path_of(root: &RootDirectory, name: &str) -> PathBuf {
    root.named_snapshots().join(format!("{name}{SUFFIX}"))
}

fn files(root: &RootDirectory) -> Result<Vec<PathBuf>, RecordError> {
    let directory = root.named_snapshots();
    // One that is overlooked would lose its build.
    let listed = std::fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = match listed {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            let path = directory;
            return Err(RecordError::Read { path, source });
        }
    };
    let names = entries.iter().map(DirEntry::file_name);
    Ok(names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.strip_suffix(SUFFIX).is_some_and(is_name))
        .map(|name| directory.join(name))
        .collect())
}

fn read(path: &Path) -> Result<Option<NamedSnapshot>, RecordError> {
    read_versioned(path.to_owned(), VERSION)
}

/// What to ask for where a sandbox of the template `name` is wanted: the size of a snapshot
/// is given, a template that boots leaves it open.
///
/// # Errors
/// When the name is a snapshot's that cannot be read.
pub fn default_config(root: &RootDirectory, name: &str) -> Result<SandboxConfig, RecordError> {
    let config = SandboxConfig::from_template(name);
    Ok(match NamedSnapshot::find(root, name)? {
        Some(named) => SandboxConfig {
            resources: named.resources(),
            ..config
        },
        None => config,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::sandbox::builds;
    use crate::sandbox::directory::SandboxDirectory;
    use crate::snapshot::{BuildDetails, Geometry, MemoryFile, Snapshot};

    fn frozen(root: &RootDirectory) -> Frozen {
        let writer = BuildStore::open(root).unwrap().begin().unwrap();
        std::fs::write(writer.memory(), vec![1; 1 << 16]).unwrap();
        std::fs::write(writer.vmstate(), "state").unwrap();
        let full = MemoryFile::Full(Geometry::new(1 << 16, 4096).unwrap());
        let build = writer.publish(full, BuildDetails::default()).unwrap();
        let config = SandboxConfig {
            env: [("KEY".to_owned(), "value".to_owned())].into(),
            ..SandboxConfig::from_template("minimal")
        };
        let record = SandboxRecord::begin(&config, "2026-01-02T03:04:05Z".to_owned());
        let directory = SandboxDirectory::create(root, config.id.clone()).unwrap();
        Frozen::of(&record, &directory, build)
    }

    #[tokio::test]
    async fn a_name_is_had_once_is_secret_and_keeps_its_build() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::new(directory.path());
        assert_eq!(NamedSnapshot::list(&root).unwrap(), []);
        let frozen = frozen(&root);
        let named = frozen.name(&root, "warm").unwrap();
        let build = frozen.build().clone();
        assert_eq!(
            NamedSnapshot::list(&root).unwrap(),
            std::slice::from_ref(&named)
        );
        assert_eq!(NamedSnapshot::find(&root, "warm").unwrap(), Some(named));
        assert_eq!(NamedSnapshot::find(&root, "../named/warm").unwrap(), None);
        let path = path_of(&root, "warm");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let error = frozen.name(&root, "warm").unwrap_err();
        assert!(matches!(error, NameSnapshotError::Taken(_)), "{error}");
        for name in ["", "..", "a/b", &"x".repeat(129)] {
            let error = frozen.name(&root, name).unwrap_err();
            assert!(matches!(error, NameSnapshotError::Name(_)), "{error}");
        }
        let left = std::fs::read_dir(root.named_snapshots()).unwrap().count();
        assert_eq!(left, 1, "something was left aside");

        drop(frozen);
        assert!(builds::collect(&root).await.unwrap().is_empty());
        // One that cannot be read may name anything.
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, "{").unwrap();
        builds::collect(&root).await.unwrap_err();
        assert!(Snapshot::open(&root, &build).is_ok());
        std::fs::write(&path, whole).unwrap();

        assert_eq!(NamedSnapshot::delete(&root, "warm").unwrap(), []);
        let error = NamedSnapshot::delete(&root, "warm").unwrap_err();
        assert!(
            matches!(error, DeleteSnapshotError::Unknown { .. }),
            "{error}"
        );
        assert_eq!(builds::collect(&root).await.unwrap(), [build]);
    }

    #[test]
    fn whoever_needs_the_build_is_named_when_the_name_goes() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::new(directory.path());
        let frozen = frozen(&root);
        frozen.name(&root, "warm").unwrap();
        assert_eq!(frozen.record.setup.env["KEY"], "value");
        let child = frozen.child(SandboxId::random());
        let mut record = SandboxRecord::begin(&child, "2026-01-02T03:04:05Z".to_owned());
        record.build = Some(frozen.build().clone());
        let sandbox = root.sandbox(&child.id);
        std::fs::create_dir_all(&sandbox).unwrap();
        record.write(&sandbox).unwrap();
        assert_eq!(NamedSnapshot::delete(&root, "warm").unwrap(), [child.id]);
    }
}
