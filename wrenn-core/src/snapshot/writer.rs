//! Making a build: written aside, synced, renamed into place.
//!
//! ```text
//! begin ──▶ <id>.tmp-…/          locked by the writer
//!             │  the VMM writes memory.bin and vmstate.bin, or they are moved in;
//!             │  further files are moved in
//! publish     │  leave out what did not change, and zeros
//!             │  scan memory.bin: pages, zeros, checksums  ┐ at the same time
//!             │  sync memory.bin                           ┘
//!             │  write memory.sums, build.json, header.bin; sync all, sync the directory
//!             └▶ rename to <id>/, sync the directory of builds
//! ```
//!
//! **Memory stays where the VMM wrote it**: the sparse file becomes `memory.bin` by a
//! rename, and a page's offset in it is its offset in guest memory. So the memory file of a
//! full build is guest memory as it is and can be mapped. Packing pages densely would save
//! no room, since holes take none. Only where a good part of the file need not be there
//! ([`super::sorted`]) is the rest copied, to the same offsets.
//!
//! **In a diff a hole means unchanged and zeros mean zero.** The VMM writes every dirty
//! page, zeros among them, so the file system's record of which blocks were written is the
//! record of dirty pages. [`BuildStore::open`] makes sure that the file system keeps it
//! page by page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use rustix::fs::statvfs;
use tracing::{debug, warn};

use super::extent::Geometry;
use super::file::{self, FileError, Unsynced};
use super::header::{FileSeal, Header, Row, Seals};
use super::id::BuildId;
use super::manifest::{BuildDetails, BuildManifest, FileRecord, MANIFEST_VERSION, is_further_file};
use super::open::{OpenSnapshotError, Snapshot};
use super::pin::Pin;
use super::scan::Scan;
use super::sorted::Sorted;
use super::store::{BuildStore, HEADER, MANIFEST, MEMORY, SUMS, VMSTATE};
use super::{checksum, chunks, sparse};

/// What is kept of a memory file, before it takes its place. No further file has such a name.
const KEPT: &str = ".memory.kept";
/// What part of the free room a copy may take. A disk that is full, if only for a moment, would
/// take the stores of running sandboxes with it.
const PART_OF_ROOM: u64 = 4;
/// How often a new directory may be swept away before it is locked.
const BEGIN_TRIES: u32 = 8;

/// Why a build cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteBuildError {
    /// A file cannot be written.
    #[error("the snapshot cannot be written")]
    File(#[from] FileError),
    /// The VMM's file has another length than memory.
    #[error("{} has {found} bytes, memory has {wanted}", path.display())]
    MemoryLength {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// That of memory.
        wanted: u64,
    },
    /// A further file has no name that it may have.
    #[error("'{0}' is no name of a file in a build: one is made of a-z, 0-9, '.', '_' and '-'")]
    FileName(String),
    /// The manifest cannot be written as JSON.
    #[error("the build's details cannot be written down")]
    Manifest(#[source] serde_json::Error),
    /// What was written cannot be opened.
    #[error("the snapshot was written and cannot be read back")]
    Reopen(#[from] OpenSnapshotError),
}

/// What a VMM wrote as memory.
#[derive(Clone, Copy, Debug)]
pub enum MemoryFile<'a> {
    /// All of memory. What is a hole or zero is zero.
    Full(Geometry),
    /// The pages that changed since another snapshot. What is a hole did not change.
    /// The snapshot stays open until the new build is in place, so that nobody removes
    /// what the new one needs.
    Diff(&'a Snapshot),
}

/// A build that is being written. Dropping it removes what was written.
#[must_use = "dropping a writer removes what was written"]
#[derive(Debug)]
pub struct BuildWriter {
    store: BuildStore,
    id: BuildId,
    path: PathBuf,
    files: BTreeSet<String>,
    compacted_from: Option<BuildId>,
    in_place: bool,
    _pin: Pin,
}

impl BuildStore {
    /// Begins a build.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn begin(&self) -> Result<BuildWriter, WriteBuildError> {
        let id = BuildId::random();
        for _ in 0..BEGIN_TRIES {
            let path = self.aside(&id);
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .map_err(FileError::of("make", &path))?;
            // Between the two steps a sweep may take it for a dead writer's.
            if let Some(pin) = Pin::share(&path)? {
                return Ok(BuildWriter {
                    store: self.clone(),
                    id,
                    path,
                    files: BTreeSet::new(),
                    compacted_from: None,
                    in_place: false,
                    _pin: pin,
                });
            }
        }
        let path = self.path();
        let error = io::Error::other("it is swept again and again");
        Err(FileError::of("make a directory in", path)(error).into())
    }
}

impl BuildWriter {
    /// The id that the build will have.
    #[must_use]
    pub fn id(&self) -> &BuildId {
        &self.id
    }

    /// Where the VMM writes, or the caller moves, guest memory.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.path.join(MEMORY)
    }

    /// Where the VMM writes, or the caller moves, its state.
    #[must_use]
    pub fn vmstate(&self) -> PathBuf {
        self.path.join(VMSTATE)
    }

    /// Moves in the memory that a VMM wrote elsewhere: by a rename, or a copy from another
    /// file system.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn take_memory(&self, from: &Path) -> Result<(), WriteBuildError> {
        take(from, &self.memory())
    }

    /// Moves in the state that a VMM wrote elsewhere.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn take_vmstate(&self, from: &Path) -> Result<(), WriteBuildError> {
        take(from, &self.vmstate())
    }

    /// Moves in a further file, such as the copy-on-write store of the disk.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn take_file(&mut self, name: &str, from: &Path) -> Result<(), WriteBuildError> {
        self.further(name, |to| take(from, to))
    }

    /// Copies in a further file that its owner keeps; blocks are shared where the file
    /// system can.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy_file(&mut self, name: &str, from: &Path) -> Result<(), WriteBuildError> {
        self.further(name, |to| copy(from, to))
    }

    fn further(
        &mut self,
        name: &str,
        bring: impl FnOnce(&Path) -> Result<(), WriteBuildError>,
    ) -> Result<(), WriteBuildError> {
        if !is_further_file(name) {
            return Err(WriteBuildError::FileName(name.to_owned()));
        }
        let path = self.path.join(name);
        bring(&path)?;
        self.files.insert(name.to_owned());
        Ok(())
    }

    /// Notes of which build this is a compacted copy.
    pub(super) fn compacted_from(&mut self, id: &BuildId) {
        self.compacted_from = Some(id.clone());
    }

    /// Makes the build what others see, and opens it. It is on the disk when this returns.
    ///
    /// The files must not be written to any more. A VM that is to end is kept paused until
    /// this returns, so that it can go on should this fail; it ends before the snapshot is
    /// resumed. **After a failure the next snapshot of this VM must be a full one**: the
    /// VMM has forgotten which pages were dirty.
    ///
    /// # Errors
    /// When a step fails; then nothing is left of the build.
    pub fn publish(
        mut self,
        memory: MemoryFile<'_>,
        details: BuildDetails,
    ) -> Result<Snapshot, WriteBuildError> {
        let geometry = match memory {
            MemoryFile::Full(geometry) => geometry,
            MemoryFile::Diff(parent) => parent.header().head.geometry,
        };
        let begun = Instant::now();
        let scan = self.scan_and_sync(geometry, memory)?;
        let scanned = begun.elapsed();
        let mut unsynced = Unsynced::default();
        let vmstate = self.seal_vmstate(&mut unsynced)?;
        let parent = match memory {
            MemoryFile::Full(_) => None,
            MemoryFile::Diff(parent) => Some(parent),
        };
        let parent_id = parent.map(|parent| parent.id().clone());
        let manifest = self.write_manifest(parent_id, details, &mut unsynced)?;
        let sums = chunks::encode(&scan.sums);
        let sums = file::write_new(&self.path.join(SUMS), &sums, &mut unsynced)?;
        let seals = Seals {
            own: Row {
                id: self.id.clone(),
                memory_length: geometry.memory_size(),
                chunk_size: scan.chunk_size,
                sums_checksum: sums.checksum,
            },
            vmstate,
            manifest,
        };
        let header = match parent {
            None => Header::full(geometry, &scan.runs, seals),
            Some(parent) => Header::overlay(parent.header(), &scan.runs, seals),
        };
        let header = header.encode();
        file::write_new(&self.path.join(HEADER), &header, &mut unsynced)?;
        let written = begun.elapsed();
        unsynced.sync()?;
        file::sync_directory(&self.path)?;
        self.rename_into_place()?;
        let in_place = begun.elapsed();
        let snapshot = Snapshot::open_in(self.store.path(), &self.id)?;
        debug!(build_id = %self.id, memory = ?scanned, ?written, ?in_place, opened = ?begun.elapsed(), "published");
        self.in_place = true;
        Ok(snapshot)
    }

    /// Reads memory while the kernel brings it to the disk.
    fn scan_and_sync(
        &self,
        geometry: Geometry,
        what: MemoryFile<'_>,
    ) -> Result<Scan, WriteBuildError> {
        let path = self.memory();
        let (mut memory, found) = seal_in(&path)?;
        let wanted = geometry.memory_size();
        if found != wanted {
            return Err(WriteBuildError::MemoryLength {
                path,
                found,
                wanted,
            });
        }
        let sorted = match what {
            MemoryFile::Diff(parent) => Some(self.sort(&memory, geometry, Some(parent))?),
            // One without holes is by a VMM that writes zeros.
            MemoryFile::Full(_) => match sparse::next_data(&memory, 0, wanted) {
                Ok(Some(data)) if data == (0..wanted) => Some(self.sort(&memory, geometry, None)?),
                Ok(_) => None,
                Err(error) => return Err(FileError::of("look at", &path)(error).into()),
            },
        };
        let mut sorted = sorted.filter(Sorted::is_worth_a_copy);
        if let Some(worth) = &sorted {
            if self.keep(&memory, worth)? {
                (memory, _) = seal_in(&path)?;
            } else {
                sorted = None;
            }
        }
        let (synced, scan) = std::thread::scope(|scope| {
            let sync = scope.spawn(|| memory.sync_all());
            let scan = Scan::of(&memory, geometry);
            let lost = |_| Err(io::Error::other("the thread that syncs it died"));
            (sync.join().unwrap_or_else(lost), scan)
        });
        let mut scan = scan.map_err(FileError::of("read", &path))?;
        synced.map_err(FileError::of("sync", &path))?;
        let punched = scan.punch_zeros(&memory, geometry);
        if punched.map_err(FileError::of("punch holes into", &path))? {
            memory.sync_all().map_err(FileError::of("sync", &path))?;
        }
        if let Some(sorted) = &sorted {
            scan.add_zeros(&sorted.zeros, geometry);
        }
        Ok(scan)
    }

    fn sort(
        &self,
        memory: &File,
        geometry: Geometry,
        parent: Option<&Snapshot>,
    ) -> Result<Sorted, WriteBuildError> {
        let sorted = Sorted::of(memory, geometry, parent);
        let sorted = sorted.map_err(FileError::of("compare", &self.memory()))?;
        debug!(build_id = %self.id, unchanged = sorted.unchanged, "compared");
        Ok(sorted)
    }

    /// Puts a memory file of only what is kept into the place of the VMM's, if there is much
    /// room for both, and says whether it has.
    fn keep(&self, memory: &File, sorted: &Sorted) -> Result<bool, WriteBuildError> {
        let path = self.memory();
        let room = statvfs(&self.path).map_err(FileError::of("look at", &self.path))?;
        if sorted.kept_bytes() > room.f_bavail.saturating_mul(room.f_frsize) / PART_OF_ROOM {
            return Ok(false);
        }
        let kept = self.path.join(KEPT);
        let failed = FileError::of::<io::Error>("write", &kept);
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&kept)
            .map_err(&failed)?;
        match sorted.copy(memory, &file).map_err(&failed) {
            Ok(()) => {}
            Err(FileError::NoSpace { .. }) => {
                std::fs::remove_file(&kept).map_err(FileError::of("remove", &kept))?;
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        std::fs::rename(&kept, &path).map_err(FileError::of("move into place", &path))?;
        Ok(true)
    }

    fn seal_vmstate(&self, unsynced: &mut Unsynced) -> Result<FileSeal, WriteBuildError> {
        let path = self.vmstate();
        let (state, length) = seal_in(&path)?;
        unsynced.add(&path, state);
        Ok(FileSeal {
            length,
            checksum: checksum::of(&file::read_whole(&path)?),
        })
    }

    fn write_manifest(
        &self,
        parent: Option<BuildId>,
        details: BuildDetails,
        unsynced: &mut Unsynced,
    ) -> Result<FileSeal, WriteBuildError> {
        let mut files = BTreeMap::new();
        for name in &self.files {
            let path = self.path.join(name);
            let (further, _) = seal_in(&path)?;
            let record = FileRecord::of(&further).map_err(FileError::of("read", &path))?;
            unsynced.add(&path, further);
            files.insert(name.clone(), record);
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let manifest = BuildManifest {
            version: MANIFEST_VERSION,
            id: self.id.clone(),
            parent,
            compacted_from: self.compacted_from.clone(),
            created_unix_ms: since.map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }),
            details,
            files,
        };
        let mut json = serde_json::to_vec_pretty(&manifest).map_err(WriteBuildError::Manifest)?;
        json.push(b'\n');
        let path = self.path.join(MANIFEST);
        Ok(file::write_new(&path, &json, unsynced)?)
    }

    fn rename_into_place(&mut self) -> Result<(), WriteBuildError> {
        let directory = self.store.directory(&self.id);
        std::fs::rename(&self.path, &directory)
            .map_err(FileError::of("move into place", &directory))?;
        // From here on the directory of the build is what a failure has to remove.
        self.path = directory;
        Ok(file::sync_directory(self.store.path())?)
    }
}

impl Drop for BuildWriter {
    fn drop(&mut self) {
        if self.in_place {
            return;
        }
        // A build that may not be on the disk must not be found by its name either.
        let aside = self.store.aside(&self.id);
        let path = match std::fs::rename(&self.path, &aside) {
            Ok(()) => &aside,
            Err(_) => &self.path,
        };
        if let Err(error) = file::remove_tree(path) {
            warn!(build_id = %self.id, %error, "the next sweep removes a build that failed");
        }
    }
}

/// Opens a file that a VMM wrote and takes it from its user: from now on it is ours, and
/// nobody writes to it. Whoever is shown it may read it, since each VMM that resumes from
/// it is another user; the directory of builds keeps out all others.
fn seal_in(path: &Path) -> Result<(File, u64), FileError> {
    let file = file::open_foreign(path)?;
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    fchown(&file, Some(user.as_raw()), Some(group.as_raw()))
        .map_err(FileError::of("take over", path))?;
    file.set_permissions(std::fs::Permissions::from_mode(0o444))
        .map_err(FileError::of("close", path))?;
    let length = file
        .metadata()
        .map_err(FileError::of("look at", path))?
        .len();
    Ok((file, length))
}

fn take(from: &Path, to: &Path) -> Result<(), WriteBuildError> {
    match std::fs::rename(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(from, to)?;
            Ok(std::fs::remove_file(from).map_err(FileError::of("remove", from))?)
        }
        Err(error) => Err(FileError::of("move", from)(error).into()),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), WriteBuildError> {
    let source = file::open_regular(from)?;
    sparse::copy_file(&source, to).map_err(FileError::of("write", to))?;
    Ok(())
}
