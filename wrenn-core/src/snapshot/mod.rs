//! Snapshots.

mod checksum;
mod codec;
mod extent;
mod header;
mod id;

pub use extent::{Extent, ExtentMap, Geometry, InvalidGeometry, Source};
pub use header::{DecodeHeaderError, FileSeal, Head, Header, Row};
pub use id::{BuildId, InvalidBuildId};
