//! The copy-on-write store of a disk: a sparse file that holds the chunks that were written.
//!
//! The layout is the kernel's (`drivers/md/dm-snap-persistent.c`), in chunks, all numbers
//! little-endian:
//!
//! ```text
//! 0         header: magic "SnAp", valid, version, sectors of a chunk
//! 1         area 0: pairs (chunk of the disk, chunk of this file); the first pair whose
//!           second half is 0 ends the list
//! 2 ..      data of area 0, as many chunks as a chunk holds pairs
//! n + 2     area 1, and so on
//! ```
//!
//! When an area is full, the kernel writes zeros to the next one at once, so there is
//! always room for one more area than the data needs: without it a store that is exactly
//! full would become invalid.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::table::SECTOR;

const MAGIC: u32 = u32::from_le_bytes(*b"SnAp");
const VERSION: u32 = 1;
const HEADER_LEN: usize = 16;
const PAIR_LEN: u64 = 16;

/// The unit in which a disk is copied on write: a power of two from 4 KiB to 1 MiB.
///
/// The default is 4 KiB, the block of the guest's file system: a write of whole blocks
/// then replaces a chunk without reading it, and the store takes no more than was written.
/// On an emulated machine, 256 scattered blocks over data took 14 ms with 4 KiB, and 1.4 s
/// with 16 KiB, where the rest of each chunk is copied; 16 MiB in sequence took 3.6 s and
/// 4.4 s.
/// Larger chunks need less kernel memory (32 bytes for each run of written chunks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSize {
    bytes: u32,
}

impl ChunkSize {
    pub(super) const SMALLEST_LOG: u32 = 12;
    pub(super) const LARGEST_LOG: u32 = 20;

    /// A chunk of so many bytes; `None` if it is too small, too large or no power of two.
    #[must_use]
    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        let fits = bytes.is_power_of_two()
            && bytes >= 1 << Self::SMALLEST_LOG
            && bytes <= 1 << Self::LARGEST_LOG;
        if fits { Some(Self { bytes }) } else { None }
    }

    pub(super) fn from_sectors(sectors: u32) -> Option<Self> {
        Self::from_bytes(sectors.checked_mul(u32::try_from(SECTOR).ok()?)?)
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.bytes)
    }

    pub(super) fn sectors(self) -> u64 {
        self.bytes() / SECTOR
    }

    /// How many pairs an area holds, which is also how many chunks of data follow it.
    fn pairs(self) -> u64 {
        self.bytes() / PAIR_LEN
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self {
            bytes: 1 << Self::SMALLEST_LOG,
        }
    }
}

/// How much a store can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreShape {
    /// Bytes of written data that it has room for, besides its own metadata.
    pub capacity_bytes: u64,
    /// The unit of copying.
    pub chunk: ChunkSize,
}

impl StoreShape {
    /// A store that can take every byte of a disk of this size, so it never fills up. The
    /// file is sparse: what is not written takes no space.
    #[must_use]
    pub fn for_disk(disk_bytes: u64) -> Self {
        Self {
            capacity_bytes: disk_bytes,
            chunk: ChunkSize::default(),
        }
    }

    /// The length of the store's file: header, data, and one area more than is full.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let data = self.capacity_bytes.div_ceil(self.chunk.bytes()).max(1);
        let areas = data / self.chunk.pairs() + 1;
        (1 + data + areas).saturating_mul(self.chunk.bytes())
    }
}

/// Whether a store of this length can run full below a disk of that size.
pub(super) fn can_fill(store_bytes: u64, disk_bytes: u64, chunk: ChunkSize) -> bool {
    let whole = StoreShape {
        capacity_bytes: disk_bytes,
        chunk,
    };
    store_bytes < whole.file_bytes()
}

/// Why a file is refused as a store.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum StoreDamage {
    #[error("it does not begin as a store does; it was damaged, or never was one")]
    NoMagic,
    #[error("the kernel marked it as invalid: it ran full, or its file system did")]
    Invalidated,
    #[error("it has version {0}, which this program does not know")]
    Version(u32),
    #[error("its chunks have {0} sectors, which no store of ours has")]
    Chunk(u32),
    #[error("it is cut short after {0} bytes")]
    CutShort(u64),
    #[error("entry {index} of its table says that chunk {of_disk} lies at {of_store}")]
    Entry {
        index: u64,
        of_disk: u64,
        of_store: u64,
    },
}

/// Why a store cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) enum ReadStoreError {
    Io(#[from] io::Error),
    Damaged(#[from] StoreDamage),
}

/// Makes the empty store file. Fails if there is one.
pub(super) fn create(path: &Path, shape: StoreShape) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    if let Err(error) = file.set_len(shape.file_bytes()) {
        // A file that holds nothing is nobody's loss.
        drop(std::fs::remove_file(path));
        return Err(error);
    }
    Ok(file)
}

/// What a store holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) chunk: ChunkSize,
    /// Numbers of the disk's chunks that were written, ascending.
    pub(super) written: Vec<u64>,
}

/// Reads the tables of a store, and checks all that can be checked: the kernel believes
/// what it finds, and a guest would find one file's blocks in another.
pub(super) fn read(file: &File, disk_bytes: u64) -> Result<Contents, ReadStoreError> {
    let length = file.metadata()?.len();
    if length < HEADER_LEN as u64 {
        return Err(StoreDamage::CutShort(length).into());
    }
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0)?;
    let chunk = parse_header(&header)?;
    let chunks = length / chunk.bytes();
    if chunks < 2 {
        return Err(StoreDamage::CutShort(length).into());
    }
    let mut check = Check {
        chunk,
        chunks,
        in_disk: Bits::new(disk_bytes.div_ceil(chunk.bytes())),
        in_store: Bits::new(chunks),
        index: 0,
    };
    let mut area = vec![0; usize::try_from(chunk.bytes()).unwrap_or(usize::MAX)];
    let mut at = 1;
    // There is no list behind the end of the file: an area that fits is always the last.
    while at < chunks {
        file.read_exact_at(&mut area, at * chunk.bytes())?;
        if !check.area(&area)? {
            break;
        }
        at += chunk.pairs() + 1;
    }
    Ok(Contents {
        chunk,
        written: check.in_disk.ones(),
    })
}

fn parse_header(header: &[u8; HEADER_LEN]) -> Result<ChunkSize, StoreDamage> {
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if word(0) != MAGIC {
        return Err(StoreDamage::NoMagic);
    }
    if word(4) == 0 {
        return Err(StoreDamage::Invalidated);
    }
    if word(8) != VERSION {
        return Err(StoreDamage::Version(word(8)));
    }
    ChunkSize::from_sectors(word(12)).ok_or(StoreDamage::Chunk(word(12)))
}

/// What is known of the pairs that were read so far.
struct Check {
    chunk: ChunkSize,
    chunks: u64,
    in_disk: Bits,
    in_store: Bits,
    index: u64,
}

impl Check {
    /// Takes in one area. Returns whether it is full, so that another one follows.
    fn area(&mut self, area: &[u8]) -> Result<bool, StoreDamage> {
        for pair in area.chunks_exact(16) {
            let half = |at: usize| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&pair[at..at + 8]);
                u64::from_le_bytes(bytes)
            };
            let (of_disk, of_store) = (half(0), half(8));
            if of_store == 0 {
                return Ok(false);
            }
            let is_area = of_store % (self.chunk.pairs() + 1) == 1;
            let sound = !is_area
                && of_store < self.chunks
                && self.in_store.set(of_store)
                && self.in_disk.set(of_disk);
            if !sound {
                return Err(StoreDamage::Entry {
                    index: self.index,
                    of_disk,
                    of_store,
                });
            }
            self.index += 1;
        }
        Ok(true)
    }
}

/// A set of small numbers.
struct Bits {
    words: Vec<u64>,
    end: u64,
}

impl Bits {
    fn new(end: u64) -> Self {
        let words = usize::try_from(end.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
            end,
        }
    }

    /// Adds a number; `false` if it is in already or beyond the end.
    fn set(&mut self, number: u64) -> bool {
        let word = usize::try_from(number / 64)
            .ok()
            .and_then(|index| self.words.get_mut(index));
        match word {
            Some(word) if number < self.end && *word & (1 << (number % 64)) == 0 => {
                *word |= 1 << (number % 64);
                true
            }
            _ => false,
        }
    }

    fn ones(&self) -> Vec<u64> {
        (0_u64..)
            .zip(&self.words)
            .flat_map(|(index, word)| {
                (0..64)
                    .filter(move |bit| word & (1 << bit) != 0)
                    .map(move |bit| index * 64 + bit)
            })
            .collect()
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
