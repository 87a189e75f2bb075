//! What a build is made of, for people: also of one that is damaged or lacks another.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::extent::Source;
use super::file::{self, FileError};
use super::header::{DecodeHeaderError, Header};
use super::id::BuildId;
use super::manifest::BuildManifest;
use super::open::{OpenSnapshotError, ReadMemoryError, Snapshot};
use super::store::{HEADER, MANIFEST, MEMORY};

/// Why a build cannot be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Its header cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its header is damaged.
    #[error("{} is damaged", path.display())]
    Header {
        /// The header.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: DecodeHeaderError,
    },
}

/// Why a build does not verify.
#[derive(Debug, thiserror::Error)]
pub enum VerifyBuildError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenSnapshotError),
    /// Memory or a further file is damaged.
    #[error(transparent)]
    Read(#[from] ReadMemoryError),
}

/// What a build is made of.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The build.
    pub id: BuildId,
    /// Its directory.
    pub directory: PathBuf,
    /// How many builds deep.
    pub generation: u32,
    /// What its maker says, where that can be read.
    pub manifest: Option<BuildManifest>,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// How much of it is zero and lies nowhere.
    pub zero_bytes: u64,
    /// How many extents it has.
    pub extents: usize,
    /// Bytes of the header.
    pub header_bytes: u64,
    /// Bytes of the VM's state.
    pub vmstate_bytes: u64,
    /// Whether parts of it lie in other builds.
    pub needs_others: bool,
    /// The builds that memory comes from, itself first.
    pub chain: Vec<InspectedLayer>,
}

/// A build that memory comes from.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedLayer {
    /// The build.
    pub id: BuildId,
    /// Whether it is there.
    pub present: bool,
    /// Bytes of guest memory that come from it.
    pub used_bytes: u64,
    /// Length of its memory file, holes included.
    pub apparent_bytes: u64,
    /// What that file takes on the disk.
    pub allocated_bytes: u64,
    /// Bytes that one checksum covers.
    pub chunk_bytes: u32,
    /// CRC-64/NVME of its checksums, in hex.
    pub sums_checksum: String,
}

impl Inspection {
    /// Inspects the build in a directory. The builds that it needs lie beside it.
    ///
    /// # Errors
    /// When its header cannot be read. Whatever else is missing is in the report.
    pub fn of(directory: &Path) -> Result<Self, InspectError> {
        let path = directory.join(HEADER);
        let bytes = file::read_whole(&path)?;
        let header =
            Header::decode(&bytes).map_err(|source| InspectError::Header { path, source })?;
        let manifest = file::read_whole(&directory.join(MANIFEST)).ok();
        let zeros = header
            .extents()
            .iter()
            .filter(|extent| extent.source == Source::Zero);
        let used = header.bytes_by_row();
        let rows = (header.head.rows.iter().zip(used)).enumerate();
        Ok(Self {
            id: header.head.rows[0].id.clone(),
            directory: directory.to_owned(),
            generation: header.head.generation,
            manifest: manifest.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
            page_bytes: header.head.geometry.page_size(),
            memory_bytes: header.head.geometry.memory_size(),
            zero_bytes: zeros.map(|extent| extent.length).sum(),
            extents: header.extents().len(),
            header_bytes: bytes.len() as u64,
            vmstate_bytes: header.head.vmstate.length,
            needs_others: header.head.needs().next().is_some(),
            chain: rows
                .map(|(number, (row, used_bytes))| {
                    let place = match number {
                        0 => directory.to_owned(),
                        _ => directory.with_file_name(row.id.as_str()),
                    };
                    let memory = File::open(place.join(MEMORY)).and_then(|file| file.metadata());
                    InspectedLayer {
                        id: row.id.clone(),
                        present: memory.is_ok(),
                        used_bytes,
                        apparent_bytes: row.memory_length,
                        allocated_bytes: memory.map_or(0, |meta| meta.blocks() * 512),
                        chunk_bytes: row.chunk_size,
                        sums_checksum: format!("{:016x}", row.sums_checksum),
                    }
                })
                .collect(),
        })
    }

    /// Verifies everything that the build needs. Reads all of it.
    ///
    /// # Errors
    /// At the first thing that is missing or not as it was written.
    pub fn verify(&self) -> Result<(), VerifyBuildError> {
        let builds = self.directory.parent().unwrap_or(Path::new(""));
        Ok(Snapshot::open_in(builds, &self.id)?.verify()?)
    }
}
