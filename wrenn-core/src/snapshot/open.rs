//! A build with all that it needs, open to be read.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::extent::{Extent, Source};
use super::file::{self, FileError};
use super::header::{DecodeHeaderError, Header, Row};
use super::id::BuildId;
use super::manifest::{BuildManifest, FileRecord, MANIFEST_VERSION, is_further_file};
use super::pin::Pin;
use super::store::{HEADER, MANIFEST, MEMORY, SUMS, VMSTATE};
use super::{checksum, chunks};
use crate::RootDirectory;

/// Generations up to which a snapshot is left as it is; a deeper one is worth compacting.
pub const GENERATION_LIMIT: u32 = 8;

/// Why a snapshot cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenSnapshotError {
    /// Nothing of that id is there.
    #[error("there is no build {id} in {}", directory.display())]
    Unknown {
        /// The build.
        id: BuildId,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A build that it needs is not there.
    #[error("build {id} needs build {missing}, which is not in {}", directory.display())]
    MissingBuild {
        /// The build that was asked for.
        id: BuildId,
        /// The one that it needs.
        missing: BuildId,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A file cannot be read.
    #[error("a build cannot be read")]
    File(#[from] FileError),
    /// The header is damaged.
    #[error("{} is damaged; the snapshot cannot be resumed", path.display())]
    Header {
        /// The header.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: DecodeHeaderError,
    },
    /// A file is not as it was written.
    #[error("{} is not as it was written; the snapshot cannot be resumed", .0.display())]
    Damaged(PathBuf),
    /// The manifest makes no sense.
    #[error("{} makes no sense", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest was written by a later version.
    #[error("{} has layout {found}, this program knows {MANIFEST_VERSION}; use a newer wrenn", path.display())]
    ManifestVersion {
        /// The manifest.
        path: PathBuf,
        /// The layout that it names.
        found: u32,
    },
}

/// Why memory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadMemoryError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A chunk is not as it was written.
    #[error("{} is not as it was written, {length} bytes from {offset} on", path.display())]
    Chunk {
        /// The memory file.
        path: PathBuf,
        /// Where the chunk begins.
        offset: u64,
        /// How long it is.
        length: usize,
    },
    /// The checksums themselves are not as they were written.
    #[error("{} is not as it was written", .0.display())]
    Sums(PathBuf),
    /// There is no memory there.
    #[error("there is no guest memory from {} to {}", .0.start, .0.end)]
    Range(Range<u64>),
}

/// A build and those that it needs, each kept from being removed while this lives.
#[derive(Debug)]
pub struct Snapshot {
    header: Header,
    manifest: BuildManifest,
    directory: PathBuf,
    layers: Vec<Layer>,
}

/// The memory file of one build.
#[derive(Debug)]
pub struct Layer {
    row: Row,
    path: PathBuf,
    memory: File,
    sums: OnceLock<Vec<u64>>,
    _pin: Pin,
}

impl Snapshot {
    /// Opens a build with all builds that it needs.
    ///
    /// Header, manifest and VM state are verified here, the lengths of memory files too.
    /// Memory is verified when it is read, see [`Layer::read_chunk`] and
    /// [`Snapshot::verify`].
    ///
    /// # Errors
    /// When the build or one that it needs is not there, or not as it was written.
    pub fn open(root: &RootDirectory, id: &BuildId) -> Result<Self, OpenSnapshotError> {
        Self::open_in(&root.builds(), id)
    }

    pub(super) fn open_in(builds: &Path, id: &BuildId) -> Result<Self, OpenSnapshotError> {
        let directory = builds.join(id.as_str());
        let unknown = || OpenSnapshotError::Unknown {
            id: id.clone(),
            directory: builds.to_owned(),
        };
        let mut own_pin = Some(Pin::share(&directory)?.ok_or_else(unknown)?);
        let path = directory.join(HEADER);
        let bytes = file::read_whole(&path)?;
        let header = Header::decode(&bytes).map_err(|source| OpenSnapshotError::Header {
            path: path.clone(),
            source,
        })?;
        if header.head.rows[0].id != *id {
            return Err(OpenSnapshotError::Damaged(path));
        }
        let mut layers = Vec::with_capacity(header.head.rows.len());
        for row in &header.head.rows {
            let directory = builds.join(row.id.as_str());
            let pin = match own_pin.take() {
                Some(pin) => pin,
                None => Pin::share(&directory)?.ok_or_else(|| OpenSnapshotError::MissingBuild {
                    id: id.clone(),
                    missing: row.id.clone(),
                    directory: builds.to_owned(),
                })?,
            };
            layers.push(Layer::open(row.clone(), &directory, pin)?);
        }
        let manifest = read_manifest(&directory, &header)?;
        let vmstate = directory.join(VMSTATE);
        let bytes = file::read_whole(&vmstate)?;
        if !header.head.vmstate.fits(&bytes) {
            return Err(OpenSnapshotError::Damaged(vmstate));
        }
        for (name, record) in &manifest.files {
            if !is_further_file(name) {
                return Err(OpenSnapshotError::Damaged(directory.join(MANIFEST)));
            }
            let path = directory.join(name);
            let further = file::open_regular(&path)?;
            let found = further
                .metadata()
                .map_err(FileError::of("look at", &path))?;
            if found.len() != record.length {
                return Err(OpenSnapshotError::Damaged(path));
            }
        }
        Ok(Self {
            header,
            manifest,
            directory,
            layers,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &BuildId {
        &self.manifest.id
    }

    /// Its header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// What its maker says about it.
    #[must_use]
    pub const fn manifest(&self) -> &BuildManifest {
        &self.manifest
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The VM's state, verified when this was opened.
    #[must_use]
    pub fn vmstate(&self) -> PathBuf {
        self.directory.join(VMSTATE)
    }

    /// Memory files, in the order of the header's table.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Whether the snapshot has grown so deep that it is worth compacting.
    #[must_use]
    pub const fn wants_compaction(&self) -> bool {
        self.header.head.generation > GENERATION_LIMIT
    }

    /// The memory file, where it alone is guest memory as it is and can be mapped: a
    /// build that needs no other.
    #[must_use]
    pub fn mappable(&self) -> Option<&Path> {
        let own_place = |extent: Extent| match extent.source {
            // Only what a header places in a file is other than zero there.
            Source::Zero => true,
            Source::Build { row, offset } => row == 0 && offset == extent.offset,
        };
        let whole = self.layers[0].row.memory_length == self.header.head.geometry.memory_size();
        (whole && self.header.extents().iter().all(own_place)).then(|| self.layers[0].path())
    }

    /// Reads guest memory, unverified.
    ///
    /// # Errors
    /// When the range is not all memory, or a file cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadMemoryError> {
        let range = offset..offset.saturating_add(buffer.len() as u64);
        if range.end > self.header.head.geometry.memory_size() {
            return Err(ReadMemoryError::Range(range));
        }
        let mut rest = buffer;
        for extent in self.header.extents().extents_in(range) {
            // What is left of a buffer in memory fits a usize.
            let (part, after) = rest.split_at_mut(usize::try_from(extent.length).unwrap_or(0));
            match extent.source {
                Source::Zero => part.fill(0),
                Source::Build { row, offset } => {
                    let layer = &self.layers[row as usize];
                    let read = layer.memory.read_exact_at(part, offset);
                    read.map_err(FileError::of("read", &layer.path))?;
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// Verifies all of memory that this snapshot needs, and the further files. Reads
    /// everything once.
    ///
    /// # Errors
    /// At the first part that is not as it was written.
    pub fn verify(&self) -> Result<(), ReadMemoryError> {
        for (layer, chunks) in self.layers.iter().zip(self.chunks_needed()) {
            let mut buffer = Vec::new();
            // Without chunks too, the table itself is looked at.
            layer.sums()?;
            for chunk in chunks {
                layer.read_chunk(chunk, &mut buffer)?;
            }
        }
        for (name, record) in &self.manifest.files {
            let path = self.directory.join(name);
            let further = file::open_regular(&path)?;
            let found = FileRecord::of(&further).map_err(FileError::of("read", &path))?;
            if found != *record {
                return Err(ReadMemoryError::Sums(path));
            }
        }
        Ok(())
    }

    /// The chunks of each layer that hold something of this snapshot, ascending.
    fn chunks_needed(&self) -> Vec<Vec<u64>> {
        let mut needed = vec![Vec::new(); self.layers.len()];
        for extent in self.header.extents().iter() {
            if let Source::Build { row, offset } = extent.source {
                let size = u64::from(self.layers[row as usize].row.chunk_size);
                let last = (offset + extent.length - 1) / size;
                needed[row as usize].extend(offset / size..=last);
            }
        }
        for chunks in &mut needed {
            chunks.sort_unstable();
            chunks.dedup();
        }
        needed
    }
}

impl Layer {
    fn open(row: Row, directory: &Path, pin: Pin) -> Result<Self, OpenSnapshotError> {
        let path = directory.join(MEMORY);
        let memory = file::open_regular(&path)?;
        let found = memory.metadata().map_err(FileError::of("look at", &path))?;
        if found.len() != row.memory_length {
            return Err(OpenSnapshotError::Damaged(path));
        }
        Ok(Self {
            row,
            path,
            memory,
            sums: OnceLock::new(),
            _pin: pin,
        })
    }

    /// Its row in the header's table.
    #[must_use]
    pub const fn row(&self) -> &Row {
        &self.row
    }

    /// The memory file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The memory file, open for reading.
    #[must_use]
    pub const fn memory(&self) -> &File {
        &self.memory
    }

    /// Bytes that one checksum covers: the unit of [`read_chunk`](Self::read_chunk).
    #[must_use]
    pub fn chunk_size(&self) -> u64 {
        u64::from(self.row.chunk_size)
    }

    /// Reads and verifies a chunk: the bytes of the memory file from `chunk` times the
    /// chunk size on. The buffer is as long as the chunk then. Holes are not read from the
    /// disk.
    ///
    /// # Errors
    /// When the chunk is not as it was written, or cannot be read.
    pub fn read_chunk(&self, chunk: u64, buffer: &mut Vec<u8>) -> Result<(), ReadMemoryError> {
        if chunk >= chunks::count(self.row.memory_length, self.row.chunk_size) {
            let start = chunk.saturating_mul(self.chunk_size());
            return Err(ReadMemoryError::Range(start..start));
        }
        let sums = self.sums()?;
        let (offset, length) = chunks::place(self.row.memory_length, self.row.chunk_size, chunk);
        buffer.clear();
        buffer.resize(length, 0);
        chunks::read_data(&self.memory, offset, buffer)
            .map_err(FileError::of("read", &self.path))?;
        let wanted = usize::try_from(chunk)
            .ok()
            .and_then(|chunk| sums.get(chunk));
        if wanted == Some(&checksum::of(buffer)) {
            Ok(())
        } else {
            Err(ReadMemoryError::Chunk {
                path: self.path.clone(),
                offset,
                length,
            })
        }
    }

    /// The checksums of its chunks, read when they are first needed.
    fn sums(&self) -> Result<&[u64], ReadMemoryError> {
        if let Some(sums) = self.sums.get() {
            return Ok(sums);
        }
        let path = self.path.with_file_name(SUMS);
        let bytes = file::read_whole(&path)?;
        let count = chunks::count(self.row.memory_length, self.row.chunk_size);
        if checksum::of(&bytes) != self.row.sums_checksum || bytes.len() as u64 != count * 8 {
            return Err(ReadMemoryError::Sums(path));
        }
        Ok(self.sums.get_or_init(|| chunks::decode(&bytes)))
    }
}

fn read_manifest(directory: &Path, header: &Header) -> Result<BuildManifest, OpenSnapshotError> {
    let path = directory.join(MANIFEST);
    let bytes = file::read_whole(&path)?;
    if !header.head.manifest.fits(&bytes) {
        return Err(OpenSnapshotError::Damaged(path));
    }
    let manifest: BuildManifest = match serde_json::from_slice(&bytes) {
        Ok(manifest) => manifest,
        Err(source) => return Err(OpenSnapshotError::Manifest { path, source }),
    };
    if manifest.version == MANIFEST_VERSION {
        Ok(manifest)
    } else {
        Err(OpenSnapshotError::ManifestVersion {
            path,
            found: manifest.version,
        })
    }
}
