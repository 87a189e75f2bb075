//! Tells what a path holds, by its contents and never by its name.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::compression::{Compression, unpacked};
use super::error::ImportError;
use super::limits::{Budget, Limits};
use super::oci::{ImageDirectory, starts_an_image};
use super::tarball::{TarReader, checksum_fits};
use crate::error::AtPath as _;

/// What a template can be made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A root file system as a tar archive, packed or not.
    Tarball,
    /// An ext4 file system.
    Ext4,
    /// A container image as an archive: an OCI layout, or what `docker save` writes.
    ImageArchive,
    /// A container image as a directory.
    ImageDirectory,
}

impl SourceKind {
    /// What a person would call it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Tarball => "root file system archive",
            Self::Ext4 => "ext4 image",
            Self::ImageArchive => "container image archive",
            Self::ImageDirectory => "container image directory",
        }
    }
}

/// The magic number of ext4 lies in the superblock at 1,024 bytes, 56 bytes in.
const EXT4_MAGIC_AT: u64 = 1024 + 56;
const EXT4_MAGIC: [u8; 2] = 0xEF53_u16.to_le_bytes();

/// How other things start that people have at hand, with what they are.
const OTHERS: &[(&[u8], &str)] = &[
    (b"\xfd7zXZ\0", "is packed with xz; unpack it with xz -d"),
    (b"BZh", "is packed with bzip2; unpack it with bzip2 -d"),
    (
        b"QFI\xfb",
        "is a qcow2 disk; convert it with qemu-img, and take its root partition",
    ),
    (
        b"hsqs",
        "is a squashfs file system; unpack it and pack it with tar",
    ),
    (
        b"PK\x03\x04",
        "is a zip archive; unpack it and pack it with tar",
    ),
    (b"\x7fELF", "is a program"),
];

/// Looks at `path`.
///
/// # Errors
/// It cannot be read, or is nothing that a template can be made from.
pub fn detect(path: &Path) -> Result<SourceKind, ImportError> {
    let unrecognised = |found: &str| ImportError::Unrecognised {
        path: path.to_owned(),
        found: found.to_owned(),
    };
    let metadata = path.metadata().at("open", path)?;
    if metadata.is_dir() {
        return if ImageDirectory::is_one(path) {
            Ok(SourceKind::ImageDirectory)
        } else {
            Err(unrecognised(
                "is a directory without index.json; pack a root file system with tar",
            ))
        };
    }
    if !metadata.is_file() {
        return Err(unrecognised("is neither a file nor a directory"));
    }
    let file = File::open(path).at("open", path)?;
    let mut start = [0; 512];
    let length = read_up_to(&file, &mut start).at("read", path)?;
    let packed = Compression::of(&start[..length]) != Compression::None;

    let file = File::open(path).at("open", path)?;
    let mut reader = unpacked(file).at("read", path)?;
    let mut block = [0; 512];
    let is_tar = read_up_to(&mut reader, &mut block)
        .is_ok_and(|length| length == block.len() && checksum_fits(&block));
    if is_tar {
        let rest = io::Cursor::new(block).chain(reader);
        // Only the first name is looked at; a broken archive fails when it is unpacked.
        let budget = Budget::new(Limits {
            entries: 16,
            ..Limits::default()
        });
        return Ok(
            if first_name(rest, &budget).is_some_and(|name| starts_an_image(&name)) {
                SourceKind::ImageArchive
            } else {
                SourceKind::Tarball
            },
        );
    }
    if packed {
        return Err(unrecognised("unpacks to something that is no tar archive"));
    }
    let mut magic = [0; 2];
    let file = File::open(path).at("open", path)?;
    if file.read_exact_at(&mut magic, EXT4_MAGIC_AT).is_ok() && magic == EXT4_MAGIC {
        return Ok(SourceKind::Ext4);
    }
    let found = OTHERS
        .iter()
        .find(|(magic, _)| start.starts_with(magic))
        .map_or("is something else", |(_, words)| words);
    Err(unrecognised(found))
}

/// The name of the first entry that is not the root itself.
fn first_name(archive: impl Read, budget: &Budget) -> Option<Vec<u8>> {
    let mut archive = TarReader::new(archive, budget);
    loop {
        let path = archive.next().ok()??.path;
        if !path.iter().all(|byte| matches!(byte, b'.' | b'/')) {
            return Some(path);
        }
    }
}

fn read_up_to(mut reader: impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
