//! Which builds the sandboxes and snapshots of a root directory need.

use super::named::NamedSnapshot;
use super::record::SandboxRecord;
use super::sweep::directories;
use super::{State, memory};
use crate::RootDirectory;
use crate::snapshot::{
    BuildId, BuildStore, CollectError, FileError, Holder, OpenStoreError, Reference,
    ReferencesError,
};

/// Why builds that nobody needs were not removed.
#[derive(Debug, thiserror::Error)]
pub enum CollectBuildsError {
    /// The store cannot be opened.
    #[error("cannot open the store of builds")]
    Store(#[from] OpenStoreError),
    /// What was left half written cannot be removed.
    #[error("cannot sweep the store of builds")]
    Sweep(#[from] FileError),
    /// What nobody needs cannot be found or removed.
    #[error("cannot collect builds that nobody needs")]
    Collect(#[from] CollectError),
    /// A worker thread was lost.
    #[error("a worker thread died")]
    Thread,
}

pub(super) async fn collect(root: &RootDirectory) -> Result<Vec<BuildId>, CollectBuildsError> {
    let root = root.clone();
    tokio::task::spawn_blocking(move || {
        if !root.builds().is_dir() {
            return Ok(Vec::new());
        }
        let store = BuildStore::open(&root)?;
        store.sweep()?;
        let removed = store.gc(|| references(&root))?;
        memory::collect_working_sets(&root);
        Ok(removed)
    })
    .await
    .map_err(|_| CollectBuildsError::Thread)?
}

/// The builds that records name, or the [references] of a sandbox whose record is not there
/// or cannot be read.
fn references(root: &RootDirectory) -> Result<Vec<Reference>, ReferencesError> {
    let named = NamedSnapshot::references(root)?;
    let mut references: Vec<_> = named
        .into_iter()
        .map(|named| Reference {
            build: named.build().clone(),
            holder: Holder::Template(named.name().to_owned()),
        })
        .collect();
    for id in directories(root)? {
        let directory = root.sandbox(&id);
        let builds = match SandboxRecord::read(&directory) {
            Ok(Some(record)) if record.state == State::Stopped => continue,
            Ok(Some(record)) => record.build.into_iter().chain(record.dirty_since).collect(),
            Ok(None) | Err(_) => super::references::builds(&directory)?,
        };
        references.extend(builds.into_iter().map(|build| Reference {
            build,
            holder: Holder::Sandbox(id.clone()),
        }));
    }
    Ok(references)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::SandboxConfig;
    use crate::snapshot::{BuildDetails, Geometry, MemoryFile, Snapshot};

    fn build(root: &RootDirectory) -> BuildId {
        let writer = BuildStore::open(root).unwrap().begin().unwrap();
        std::fs::write(writer.memory(), vec![1; 1 << 16]).unwrap();
        std::fs::write(writer.vmstate(), "state").unwrap();
        let geometry = Geometry::new(1 << 16, 4096).unwrap();
        let made = writer.publish(MemoryFile::Full(geometry), BuildDetails::default());
        made.unwrap().id().clone()
    }

    #[tokio::test]
    async fn builds_stay_while_they_are_referred_to() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::new(directory.path());
        assert!(collect(&root).await.unwrap().is_empty());
        let (paused, resumed, nobodys) = (build(&root), build(&root), build(&root));
        let mut record = SandboxRecord::begin(
            &SandboxConfig::from_template("minimal"),
            "2026-01-02T03:04:05Z".to_owned(),
        );
        let sandbox = root.sandbox(&record.id);
        std::fs::create_dir_all(&sandbox).unwrap();
        record.state = State::Paused;
        record.build = Some(paused.clone());
        record.dirty_since = Some(resumed.clone());
        record.write(&sandbox).unwrap();
        // One whose record is damaged, and one that is being created.
        let (damaged, created) = (build(&root), build(&root));
        for (held, contents) in [(&damaged, Some("{")), (&created, None)] {
            let other = root.sandbox(&crate::SandboxId::random());
            std::fs::create_dir(&other).unwrap();
            super::super::references::add_build(&other, held).unwrap();
            if let Some(contents) = contents {
                std::fs::write(other.join("sandbox.json"), contents).unwrap();
            }
        }
        assert_eq!(collect(&root).await.unwrap(), [nobodys]);
        for held in [&paused, &resumed, &damaged, &created] {
            assert!(Snapshot::open(&root, held).is_ok());
        }

        record.state = State::Stopped;
        record.write(&sandbox).unwrap();
        assert_eq!(collect(&root).await.unwrap().len(), 2);
    }
}
