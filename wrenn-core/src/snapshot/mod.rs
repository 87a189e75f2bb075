//! Snapshots: frozen VMs on disk, layer upon layer.
//!
//! A *build* is one immutable layer: the memory pages that changed, the VM's state, and
//! further files such as the copy-on-write store of the disk. Its [`Header`] maps all of
//! guest memory to bytes in its own memory file, to bytes in those of other builds, or to
//! zero.
//!
//! ```text
//! <root>/snapshots/builds/bd…/header.bin    map and checksums, see below
//!                             memory.bin    sparse; a page lies where it lies in the guest
//!                             memory.sums   a checksum for each 64 KiB of it
//!                             vmstate.bin   as the VMM wrote it
//!                             build.json    what it is: parent, VMM and version, labels, files
//!                             …             further files, each named in build.json
//!
//!              ┌─ header.bin ─ its own checksum over all of it
//!   verified   │    ├─ vmstate.bin, build.json: length and checksum   at open
//!   by         │    │                  └─ further files              length at open
//!              │    └─ a row for each build: length of memory.bin     at open
//!              └─          └─ checksum of memory.sums ─ each chunk    when it is read
//! ```
//!
//! A build is written aside, synced and renamed into place ([`BuildWriter`]): it is there
//! whole or not at all. It never changes; [`BuildStore::compact`] makes a new one. It goes
//! when nobody needs it ([`BuildStore::gc`]), which is derived each time and never counted.
//!
//! Everything here blocks its thread on the disk. An async caller uses `spawn_blocking`.
//!
//! The bytes of `header.bin` are drawn in `codec.rs` and in docs/snapshots.md.
//!
//! ```no_run
//! use wrenn_core::RootDirectory;
//! use wrenn_core::snapshot::{BuildDetails, BuildStore, Geometry, MemoryFile};
//!
//! # fn example(details: BuildDetails) -> Result<(), Box<dyn std::error::Error>> {
//! let store = BuildStore::open(&RootDirectory::default())?;
//! let writer = store.begin()?;
//! // The VMM writes to writer.memory() and writer.vmstate() here.
//! let first = writer.publish(MemoryFile::Full(Geometry::new(512 << 20, 4096)?), details.clone())?;
//! let writer = store.begin()?;
//! // Later, the pages that changed since.
//! let second = writer.publish(MemoryFile::Diff(&first), details)?;
//! println!("{} needs {} other builds", second.id(), second.layers().len() - 1);
//! # Ok(())
//! # }
//! ```

mod checksum;
mod chunks;
mod codec;
mod compact;
mod extent;
mod file;
mod garbage;
mod header;
mod id;
mod inspect;
mod manifest;
mod open;
mod pin;
mod scan;
mod sorted;
mod sparse;
mod store;
mod writer;

pub use compact::CompactError;
pub use extent::{Extent, ExtentMap, Geometry, InvalidExtent, InvalidGeometry, Source};
pub use file::FileError;
pub use garbage::{CollectError, DeleteBuildError, Holder, LookError, Reference, ReferencesError};
pub use header::{DecodeHeaderError, FileSeal, Head, Header, Row};
pub use id::{BuildId, InvalidBuildId};
pub use inspect::{InspectError, InspectedLayer, Inspection, VerifyBuildError};
pub use manifest::{BuildDetails, BuildManifest, FileRecord};
pub use open::{GENERATION_LIMIT, Layer, OpenSnapshotError, ReadMemoryError, Snapshot};
pub use store::{BuildStore, OpenStoreError, ReadHeadError};
pub use writer::{BuildWriter, MemoryFile, WriteBuildError};
