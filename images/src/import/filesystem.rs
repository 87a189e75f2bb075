//! The ext4 image of a template: made from a tree, or taken as it is.

use std::fs::{self, File};
use std::path::Path;

use super::error::ImportError;
use super::prepare;
use crate::command::Program;
use crate::error::AtPath as _;
use crate::install::copy_sparse;
use crate::rootfs::{self, Filesystem};

const JOURNAL_MIB: u64 = 16;
/// What is free on a disk whose size nobody named. The image is sparse, so it costs nothing.
const ROOM_MIB: u64 = 1024;
/// Sizes that nobody named are multiples of this.
const STEP_MIB: u64 = 64;
/// The size of an inode on the disk, and how many are free on every disk.
const INODE_BYTES: u64 = 256;
const FREE_INODES: u64 = 65_536;
/// mke2fs makes one inode for so many bytes of the disk.
const BYTES_PER_INODE: u64 = 16_384;

const MIB: u64 = 1 << 20;

/// Makes the image `image` of what lies in `tree`.
pub(super) fn make(tree: &Path, image: &Path, size_mib: Option<u64>) -> Result<(), ImportError> {
    let (bytes, count) = prepare::measure(tree)?;
    let inodes = count + FREE_INODES;
    // Extents, bitmaps and group descriptors take less than a twentieth.
    let needed = bytes + bytes / 20 + inodes * INODE_BYTES;
    let needed_mib = needed.div_ceil(MIB) + 2 * JOURNAL_MIB;
    let size_mib = match size_mib {
        Some(asked_mib) if asked_mib < needed_mib => {
            return Err(ImportError::TooSmall {
                asked_mib,
                needed_mib,
            });
        }
        Some(asked_mib) => asked_mib,
        None => (needed_mib + ROOM_MIB).next_multiple_of(STEP_MIB),
    };
    let filesystem = Filesystem {
        label: "wrenn-template",
        size_mib,
        journal_mib: Some(JOURNAL_MIB),
    };
    let inodes = inodes.max(size_mib * (MIB / BYTES_PER_INODE));
    rootfs::format(tree, image, &filesystem, Some(inodes))?;
    Ok(())
}

/// Takes over the image `source` as `image`, grown to `size_mib` if that is asked.
pub(super) fn adopt(source: &Path, image: &Path, size_mib: Option<u64>) -> Result<(), ImportError> {
    copy_sparse(source, image)?;
    Program::new("e2fsck")
        .args(["-f", "-n"])
        .arg(image)
        .run()
        .map_err(|error| ImportError::Unsound {
            path: source.to_owned(),
            source: error.into(),
        })?;
    let has_mib = fs::metadata(image)
        .at("look at", image)?
        .len()
        .div_ceil(MIB);
    let asked_mib = size_mib.unwrap_or(has_mib);
    if asked_mib < has_mib {
        return Err(ImportError::TooSmall {
            asked_mib,
            needed_mib: has_mib,
        });
    }
    let file = File::options().write(true).open(image).at("open", image)?;
    file.set_len(asked_mib * MIB).at("size", image)?;
    if asked_mib > has_mib {
        Program::new("resize2fs").arg("-f").arg(image).run()?;
    }
    Ok(())
}
