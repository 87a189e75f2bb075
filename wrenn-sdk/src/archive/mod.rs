//! Directories as tar archives: packing local ones, and unpacking what a sandbox sends.

mod error;
mod pack;
mod place;
mod records;
mod unpack;

pub use error::{ArchiveError, Skipped};
pub(crate) use error::{OutwardLinks, Unpacked};
pub(crate) use pack::{pack, size_of};
pub(crate) use unpack::unpack;
