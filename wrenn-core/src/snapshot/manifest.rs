//! `build.json`: what a build is, for people and for whoever resumes it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use super::id::BuildId;
use super::store::{HEADER, MANIFEST, MEMORY, SUMS, VMSTATE};
use super::{checksum, chunks};

/// Layout version of the manifests that this code reads.
pub(super) const MANIFEST_VERSION: u32 = 1;

/// What the maker of a build says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildDetails {
    /// Name of the VMM that wrote memory and state, as its API gives it.
    pub vmm: String,
    /// Its version. Another one must not load the state.
    pub vmm_version: String,
    /// Virtual CPUs of the guest.
    pub vcpus: u32,
    /// What else the maker wants to find again, such as the template and the kernel.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// `build.json`. The header holds its checksum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildManifest {
    /// Version of this layout.
    pub version: u32,
    /// The build.
    pub id: BuildId,
    /// The build that it is the next generation of. Whether it still needs that one is in
    /// the header.
    pub parent: Option<BuildId>,
    /// The build that this one is a compacted copy of.
    #[serde(default)]
    pub compacted_from: Option<BuildId>,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// What its maker says.
    #[serde(flatten)]
    pub details: BuildDetails,
    /// Further files in its directory, by name.
    #[serde(default)]
    pub files: BTreeMap<String, FileRecord>,
}

/// A further file of a build, such as the copy-on-write store of its disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Bytes, holes included.
    pub length: u64,
    /// CRC-64/NVME of the checksums of its chunks of 64 KiB, which are laid out as in
    /// `memory.sums`. In hex.
    pub checksum: String,
}

impl FileRecord {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let sums = chunks::of_file(file, chunks::CHUNK_SIZE)?;
        Ok(Self {
            length: file.metadata()?.len(),
            checksum: format!("{:016x}", checksum::of(&chunks::encode(&sums))),
        })
    }
}

/// Whether a further file may have this name: one that cannot leave the directory and is
/// not that of a build's own files.
pub(super) fn is_further_file(name: &str) -> bool {
    let own = [HEADER, MANIFEST, MEMORY, SUMS, VMSTATE];
    !name.is_empty()
        && !name.starts_with('.')
        && !own.contains(&name)
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}
