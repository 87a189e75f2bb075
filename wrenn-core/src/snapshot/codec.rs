//! The bytes of `header.bin`, little-endian.
//!
//! ```text
//! at   size
//!  0    8   magic "WRENNSNP"
//!  8    4   layout, 1
//! 12    4   page size
//! 16    8   memory size
//! 24    4   generation
//! 28    4   number of rows r, at least 1
//! 32    4   number of extents n, at least 1
//! 36    4   zero
//! 40    8   length of vmstate.bin     48    8   its checksum
//! 56    8   length of build.json      64    8   its checksum
//! 72  48 r  rows:     0  22   build id; that of the first row is the build's own
//!                    22   2   zero
//!                    24   8   length of its memory.bin
//!                    32   8   checksum of its memory.sums
//!                    40   4   chunk size: bytes of memory.bin to a checksum in memory.sums
//!                    44   4   zero
//!  …    8   checksum of all bytes above: the head can be read without the rest
//!  …  12 n  extents:  0   4   first page in guest memory; the first is 0, each is more than
//!                             the one before, and an extent ends where the next begins
//!                     4   4   row + 1, or 0 where memory is zero
//!                     8   4   first page in that row's memory.bin, or 0
//!  …    8   checksum of all bytes above
//! ```
//!
//! `memory.sums` holds one checksum of 8 bytes for each chunk of `memory.bin`, the last of
//! which may be short. Holes count as the zeros that they read as, so a copy with more or
//! fewer of them has the same checksums. Checksums are CRC-64/NVME.
//!
//! Every number is checked before it is used: a header may come from elsewhere.

use std::collections::BTreeSet;

use super::checksum;
use super::extent::{ExtentMapBuilder, Geometry, InvalidGeometry, Target};
use super::header::{FileSeal, Head, Header, Row};
use super::id::BuildId;

const MAGIC: &[u8; 8] = b"WRENNSNP";
const LAYOUT: u32 = 1;
pub(super) const FIXED_LENGTH: usize = 72;
const ROW_LENGTH: usize = 48;
const EXTENT_LENGTH: usize = 12;
const CHECKSUM_LENGTH: usize = 8;
/// More rows than any chain has: it is compacted long before.
const MAX_ROWS: u32 = 4096;

/// Why some bytes are no header.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeHeaderError {
    /// It begins with something else.
    #[error("it is no snapshot header")]
    Magic,
    /// It was written by a later version.
    #[error("it has layout {0}, this program knows {LAYOUT}; use a newer wrenn")]
    Layout(u32),
    /// It is too short or too long.
    #[error("it has {found} bytes and should have {wanted}")]
    Length {
        /// Bytes that are there.
        found: usize,
        /// Bytes that its counts call for.
        wanted: usize,
    },
    /// A bit is not as it was written.
    #[error("its checksum does not fit")]
    Checksum,
    /// Its sizes make no sense.
    #[error("its sizes make no sense")]
    Geometry(#[from] InvalidGeometry),
    /// Its checksum fits, but a number in it makes no sense.
    #[error("its {0} makes no sense")]
    Field(&'static str),
}

pub(super) fn encode(header: &Header) -> Vec<u8> {
    let head = &header.head;
    let extents = header.extents.len();
    let mut bytes = Vec::with_capacity(
        head_length(head.rows.len()) + extents * EXTENT_LENGTH + CHECKSUM_LENGTH,
    );
    bytes.extend(MAGIC);
    put(&mut bytes, LAYOUT);
    put(&mut bytes, count(head.geometry.page_size()));
    bytes.extend(head.geometry.memory_size().to_le_bytes());
    put(&mut bytes, head.generation);
    put(&mut bytes, count(head.rows.len() as u64));
    put(&mut bytes, count(extents as u64));
    put(&mut bytes, 0);
    for seal in [head.vmstate, head.manifest] {
        bytes.extend(seal.length.to_le_bytes());
        bytes.extend(seal.checksum.to_le_bytes());
    }
    for row in &head.rows {
        bytes.extend(row.id.as_str().as_bytes());
        bytes.extend([0; 2]);
        bytes.extend(row.memory_length.to_le_bytes());
        bytes.extend(row.sums_checksum.to_le_bytes());
        put(&mut bytes, row.chunk_size);
        put(&mut bytes, 0);
    }
    let head_checksum = checksum::of(&bytes);
    bytes.extend(head_checksum.to_le_bytes());
    for (start, _, target) in header.extents.pages() {
        let (row, page) = target.place().map_or((0, 0), |(row, page)| (row + 1, page));
        let mut extent = [0; EXTENT_LENGTH];
        extent[..4].copy_from_slice(&start.to_le_bytes());
        extent[4..8].copy_from_slice(&row.to_le_bytes());
        extent[8..].copy_from_slice(&page.to_le_bytes());
        bytes.extend(extent);
    }
    let whole = checksum::of(&bytes);
    bytes.extend(whole.to_le_bytes());
    bytes
}

fn put(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend(value.to_le_bytes());
}

/// A page size of up to 1 GiB, or a count of rows or pages: each fits by construction.
fn count(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

const fn head_length(rows: usize) -> usize {
    FIXED_LENGTH + rows * ROW_LENGTH + CHECKSUM_LENGTH
}

/// How long the head is that begins with these bytes.
pub(super) fn head_length_of(fixed: &[u8]) -> Result<usize, DecodeHeaderError> {
    fixed_part(fixed).map(|(rows, _)| head_length(rows))
}

/// Checks the fixed part, as far as needed to know how many rows and extents follow.
fn fixed_part(bytes: &[u8]) -> Result<(usize, usize), DecodeHeaderError> {
    if bytes.len() < FIXED_LENGTH {
        return Err(DecodeHeaderError::Length {
            found: bytes.len(),
            wanted: FIXED_LENGTH,
        });
    }
    if !bytes.starts_with(MAGIC) {
        return Err(DecodeHeaderError::Magic);
    }
    match u32_at(bytes, 8) {
        LAYOUT => {}
        other => return Err(DecodeHeaderError::Layout(other)),
    }
    let (rows, extents) = (u32_at(bytes, 28), u32_at(bytes, 32));
    if !(1..=MAX_ROWS).contains(&rows) {
        return Err(DecodeHeaderError::Field("number of builds"));
    }
    Ok((rows as usize, extents as usize))
}

/// Reads the head from bytes that may go on behind it.
pub(super) fn decode_head(bytes: &[u8]) -> Result<Head, DecodeHeaderError> {
    let (rows, _) = fixed_part(bytes)?;
    let length = head_length(rows);
    let sum_at = length - CHECKSUM_LENGTH;
    if bytes.len() < length {
        return Err(DecodeHeaderError::Length {
            found: bytes.len(),
            wanted: length,
        });
    }
    if checksum::of(&bytes[..sum_at]) != u64_at(bytes, sum_at) {
        return Err(DecodeHeaderError::Checksum);
    }
    let geometry = Geometry::new(u64_at(bytes, 16), u64::from(u32_at(bytes, 12)))?;
    if u32_at(bytes, 36) != 0 {
        return Err(DecodeHeaderError::Field("empty field"));
    }
    let seal = |at| FileSeal {
        length: u64_at(bytes, at),
        checksum: u64_at(bytes, at + 8),
    };
    let rows = bytes[FIXED_LENGTH..sum_at]
        .chunks_exact(ROW_LENGTH)
        .map(|row| decode_row(row, geometry))
        .collect::<Result<Vec<Row>, _>>()?;
    let ids: BTreeSet<&BuildId> = rows.iter().map(|row| &row.id).collect();
    if ids.len() != rows.len() {
        return Err(DecodeHeaderError::Field("table of builds"));
    }
    Ok(Head {
        geometry,
        generation: u32_at(bytes, 24),
        vmstate: seal(40),
        manifest: seal(56),
        rows,
    })
}

fn decode_row(bytes: &[u8], geometry: Geometry) -> Result<Row, DecodeHeaderError> {
    let id = std::str::from_utf8(&bytes[..BuildId::LENGTH])
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(DecodeHeaderError::Field("build id"))?;
    let row = Row {
        id,
        memory_length: u64_at(bytes, 24),
        sums_checksum: u64_at(bytes, 32),
        chunk_size: u32_at(bytes, 40),
    };
    if bytes[BuildId::LENGTH..24] != [0; 2] || u32_at(bytes, 44) != 0 {
        return Err(DecodeHeaderError::Field("empty field"));
    }
    let page = geometry.page_size();
    let whole_pages =
        row.memory_length.is_multiple_of(page) && row.memory_length / page <= u64::from(u32::MAX);
    if !whole_pages {
        return Err(DecodeHeaderError::Field("length of memory"));
    }
    if !row.chunk_size.is_power_of_two() || u64::from(row.chunk_size) < page {
        return Err(DecodeHeaderError::Field("chunk size"));
    }
    Ok(row)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Header, DecodeHeaderError> {
    let (rows, extents) = fixed_part(bytes)?;
    let extents_at = head_length(rows);
    let sum_at = extents_at + extents * EXTENT_LENGTH;
    if bytes.len() != sum_at + CHECKSUM_LENGTH {
        return Err(DecodeHeaderError::Length {
            found: bytes.len(),
            wanted: sum_at + CHECKSUM_LENGTH,
        });
    }
    if checksum::of(&bytes[..sum_at]) != u64_at(bytes, sum_at) {
        return Err(DecodeHeaderError::Checksum);
    }
    let head = decode_head(bytes)?;
    let mut builder = ExtentMapBuilder::new(head.geometry, extents);
    let starts_at_zero = extents > 0 && u32_at(bytes, extents_at) == 0;
    if !starts_at_zero {
        return Err(DecodeHeaderError::Field("first extent"));
    }
    let mut records = bytes[extents_at..sum_at]
        .chunks_exact(EXTENT_LENGTH)
        .peekable();
    while let Some(record) = records.next() {
        let start = u32_at(record, 0);
        let end = records
            .peek()
            .map_or(head.geometry.pages(), |next| u32_at(next, 0));
        if end <= start || end > head.geometry.pages() {
            return Err(DecodeHeaderError::Field("order of extents"));
        }
        let (row, page) = (u32_at(record, 4), u32_at(record, 8));
        let target = match row.checked_sub(1) {
            None if page == 0 => Target::ZERO,
            None => return Err(DecodeHeaderError::Field("extent of zeros")),
            Some(row) => Target::build(row, page),
        };
        builder.push(end - start, target);
    }
    Header::new(head, builder.finish())
}

/// Four bytes of a slice that was checked to have them.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
