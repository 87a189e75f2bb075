//! Where the memory of a restored guest comes from.
//!
//! | snapshot | host | memory |
//! |---|---|---|
//! | one file holds all of it | any | mapped privately: the kernel brings pages itself |
//! | a chain of builds | has a pager | the pager finds each page in the chain |
//! | a chain of builds | has none | brought into one file first, and mapped |
//!
//! What a guest needs first is recorded once for each build that is paged, and prefetched
//! from then on. The pager writes it where its user may, and the host moves it to where
//! all later resumes of the build find it:
//!
//! ```text
//! <root>/sandboxes/<id>/pager/          pager.sock; working-set, being recorded
//! <root>/snapshots/working-sets/<build id>
//! ```

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

use super::ResumeError;
use super::directory::SandboxDirectory;
use super::host::Shared;
use crate::snapshot::{BuildId, BuildStore, Snapshot, Source};
use crate::uffd::process::PagerProcess;
use crate::uffd::program::ProgramConfig;
use crate::uffd::{Backing, Extent, WorkingSet};
use crate::vm::{Device, JailFile, MemoryBackend, VmUser};
use crate::{Chain, RootDirectory};

const DIRECTORY: &str = "pager";
const SOCKET: &str = "pager.sock";
const WORKING_SET: &str = "working-set";
const LOG: &str = "pager.log";
/// How the VMM knows the memory file.
const MEMORY: &str = "memory.bin";

/// Where restored guests get their memory from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemorySupply {
    /// What is quickest for each: see the table of the module.
    #[default]
    Quickest,
    /// A pager always, where the host can have one.
    Paged,
}

/// How one guest gets its memory.
pub(super) struct Supply {
    /// The snapshot, kept until the VM has it.
    pub(super) snapshot: Snapshot,
    pub(super) backend: MemoryBackend,
    pub(super) file: JailFile,
    pub(super) device: Option<Device>,
    pub(super) pager: Option<PagerProcess>,
}

/// Makes ready what a guest gets its memory from.
pub(super) async fn supply(
    host: &Shared,
    directory: &SandboxDirectory,
    snapshot: Snapshot,
    user: VmUser,
) -> Result<Supply, ResumeError> {
    let mappable = snapshot.mappable().map(Path::to_owned);
    match (&host.pager, mappable) {
        (None, Some(memory)) => Ok(mapped(snapshot, &memory)),
        (Some(_), Some(memory)) if host.memory == MemorySupply::Quickest => {
            Ok(mapped(snapshot, &memory))
        }
        (Some(program), _) => paged(host, program, directory, snapshot, user).await,
        (None, None) => {
            let (root, id) = (host.root.clone(), snapshot.id().clone());
            let whole = tokio::task::spawn_blocking(move || {
                Ok::<_, ResumeError>(BuildStore::open(&root)?.compact(&id)?)
            });
            let whole = whole.await.map_err(|_| ResumeError::Thread)??;
            // A full build is its own memory file as it is.
            let memory = whole.layers()[0].path().to_owned();
            Ok(mapped(whole, &memory))
        }
    }
}

fn mapped(snapshot: Snapshot, memory: &Path) -> Supply {
    let file = JailFile::read_only(memory, MEMORY);
    Supply {
        snapshot,
        backend: MemoryBackend::File(file.inside()),
        file,
        device: None,
        pager: None,
    }
}

async fn paged(
    host: &Shared,
    program: &Path,
    directory: &SandboxDirectory,
    snapshot: Snapshot,
    user: VmUser,
) -> Result<Supply, ResumeError> {
    let own = directory.file(DIRECTORY);
    make(&own, user).map_err(|source| ResumeError::Directory {
        path: own.clone(),
        source,
    })?;
    let known = working_set_of(&host.root, snapshot.id());
    let recorded = own.join(WORKING_SET);
    let record = !known.exists();
    let config = ProgramConfig {
        socket: own.join(SOCKET),
        files: snapshot
            .layers()
            .iter()
            .map(|layer| layer.path().to_owned())
            .collect(),
        extents: extents(&snapshot),
        working_set: Some(if record {
            recorded.clone()
        } else {
            known.clone()
        }),
        user: Some((user.get(), user.get())),
        ..ProgramConfig::default()
    };
    let name = directory.file(DIRECTORY).join("wrenn-pager");
    let log = directory.file(LOG);
    let pager = PagerProcess::launch(program, &name, directory.id(), &config, &log).await?;
    if record {
        let memory = snapshot.header().head.geometry.memory_size();
        let done = pager.recorded();
        tokio::spawn(async move {
            if done.await {
                keep(&recorded, &known, memory);
            }
        });
    }
    let file = JailFile::writable(own.join(SOCKET), SOCKET);
    Ok(Supply {
        snapshot,
        backend: MemoryBackend::Uffd(file.inside()),
        file,
        device: Some(Device::Userfaultfd),
        pager: Some(pager),
    })
}

/// Makes the pager's directory anew, in which its user can make a file.
fn make(directory: &Path, user: VmUser) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(directory)?;
    chown(directory, Some(user.get()), Some(user.get()))
}

fn extents(snapshot: &Snapshot) -> Vec<Extent> {
    let extents = snapshot.header().extents().iter();
    let placed = extents.map(|extent| Extent {
        offset: extent.offset,
        length: extent.length,
        backing: match extent.source {
            Source::Zero => Backing::Zero,
            Source::Build { row, offset } => Backing::File { index: row, offset },
        },
    });
    placed.collect()
}

fn working_set_of(root: &RootDirectory, build: &BuildId) -> PathBuf {
    root.working_sets().join(build.as_str())
}

/// Takes a recorded working set from the pager, whose word is checked: the VMM that it
/// served may have been anybody's.
fn keep(recorded: &Path, known: &Path, memory: u64) {
    let kept = || {
        if WorkingSet::load(recorded, memory)
            .map_err(io::Error::other)?
            .is_none()
        {
            return Ok(());
        }
        let parent = known.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent)?;
        // Others may record the same.
        let aside = known.with_extension(format!("{:016x}", rand::random::<u64>()));
        std::fs::copy(recorded, &aside)?;
        std::fs::rename(&aside, known)
    };
    match kept() {
        Ok(()) => debug!(path = %known.display(), "a working set is known"),
        // A sandbox that was destroyed meanwhile takes it along.
        Err(error) => debug!(%error, "a working set was not kept"),
    }
}

/// Waits for the end of a pager whose VM has ended.
pub(super) async fn end(pager: Option<PagerProcess>) {
    if let Some(pager) = pager {
        let exit = pager.kill().await;
        debug!(?exit, "a pager has ended");
    }
}

/// Removes what a pager left.
pub(super) fn clear(directory: &SandboxDirectory) {
    let own = directory.file(DIRECTORY);
    match std::fs::remove_dir_all(&own) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(sandbox_id = %directory.id(), %error, "what a pager left stays");
        }
        _ => {}
    }
}

/// Removes working sets whose builds are gone.
pub(super) fn collect_working_sets(root: &RootDirectory) {
    let Ok(entries) = std::fs::read_dir(root.working_sets()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if root.builds().join(&name).exists() {
            continue;
        }
        if let Err(error) = std::fs::remove_file(entry.path()) {
            warn!(error = %Chain(&error), path = %entry.path().display(), "stays");
        }
    }
}
