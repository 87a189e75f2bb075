//! Compaction: one full build with the contents of a deep snapshot, so that a resume reads
//! one file again.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use super::extent::Source;
use super::file::FileError;
use super::id::BuildId;
use super::open::{OpenSnapshotError, ReadMemoryError, Snapshot};
use super::sparse;
use super::store::BuildStore;
use super::writer::{MemoryFile, WriteBuildError};

/// Why a snapshot cannot be compacted.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// It cannot be opened.
    #[error("the snapshot cannot be opened")]
    Open(#[from] OpenSnapshotError),
    /// It is damaged: a copy would have checksums that fit.
    #[error("the snapshot is damaged and is left as it is")]
    Verify(#[from] ReadMemoryError),
    /// The copy cannot be written.
    #[error("the compacted snapshot cannot be written")]
    Write(#[from] WriteBuildError),
}

impl BuildStore {
    /// Writes a build that needs no other and has the same contents as `id`, which stays as
    /// it is. Whoever names `id` may name the new one instead; what nobody needs then,
    /// [`gc`](Self::gc) removes. The returned snapshot keeps the new build until it is named.
    ///
    /// Reads all of its memory, so it is nothing to wait for with a resume.
    ///
    /// # Errors
    /// When the snapshot is damaged, or the copy cannot be written; then nothing is left
    /// of it.
    pub fn compact(&self, id: &BuildId) -> Result<Snapshot, CompactError> {
        let snapshot = Snapshot::open_in(self.path(), id)?;
        snapshot.verify()?;
        let mut writer = self.begin()?;
        writer.compacted_from(id);
        copy_memory(&snapshot, &writer.memory())?;
        // State and further files belong to the old build, which keeps them.
        let state = writer.vmstate();
        copy_whole(&snapshot.vmstate(), &state)?;
        for name in snapshot.manifest().files.keys() {
            writer.copy_file(name, &snapshot.directory().join(name))?;
        }
        let geometry = snapshot.header().head.geometry;
        let details = snapshot.manifest().details.clone();
        Ok(writer.publish(MemoryFile::Full(geometry), details)?)
    }
}

fn copy_memory(snapshot: &Snapshot, to: &std::path::Path) -> Result<(), WriteBuildError> {
    let failed = FileError::of::<std::io::Error>("write", to);
    let target = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(&failed)?;
    let length = snapshot.header().head.geometry.memory_size();
    target.set_len(length).map_err(&failed)?;
    for extent in snapshot.header().extents().iter() {
        if let Source::Build { row, offset } = extent.source {
            let source = snapshot.layers()[row as usize].memory();
            let range = offset..offset + extent.length;
            sparse::copy_range(source, &target, range, extent.offset).map_err(&failed)?;
        }
    }
    Ok(())
}

fn copy_whole(from: &std::path::Path, to: &std::path::Path) -> Result<(), WriteBuildError> {
    let source = File::open(from).map_err(FileError::of("open", from))?;
    sparse::copy_file(&source, to).map_err(FileError::of("write", to))?;
    Ok(())
}
