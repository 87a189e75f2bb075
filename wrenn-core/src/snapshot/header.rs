//! The header of a build: what its guest's memory is made of, and the checksums by which
//! everything else in it is verified.

use std::collections::BTreeMap;

use super::checksum;
use super::codec;
pub use super::codec::DecodeHeaderError;
use super::extent::{ExtentMap, ExtentMapBuilder, Geometry, Target};
use super::id::BuildId;

/// Length and checksum of a file that is verified as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSeal {
    /// Bytes.
    pub length: u64,
    /// CRC-64/NVME of them.
    pub checksum: u64,
}

impl FileSeal {
    /// Whether it is the seal of these bytes.
    pub(super) fn fits(self, bytes: &[u8]) -> bool {
        self.length == bytes.len() as u64 && self.checksum == checksum::of(bytes)
    }
}

/// A build that memory comes from, as a row of a header's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The build.
    pub id: BuildId,
    /// Length of its memory file, in bytes.
    pub memory_length: u64,
    /// Bytes of memory that one checksum covers.
    pub chunk_size: u32,
    /// CRC-64/NVME of `memory.sums`, which holds the checksums of the chunks.
    pub sums_checksum: u64,
}

/// The first part of a header, which can be read and verified without the extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Size of memory and pages.
    pub geometry: Geometry,
    /// How many builds deep: 0 for one that needs no other.
    pub generation: u32,
    /// `vmstate.bin`.
    pub vmstate: FileSeal,
    /// `build.json`.
    pub manifest: FileSeal,
    /// The build itself, then those that memory comes from besides.
    pub rows: Vec<Row>,
}

impl Head {
    /// Builds that this one needs.
    pub fn needs(&self) -> impl Iterator<Item = &BuildId> {
        self.rows.iter().skip(1).map(|row| &row.id)
    }
}

/// The header of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Everything but the extents.
    pub head: Head,
    pub(super) extents: ExtentMap,
}

/// What one build has to say about some pages: they are zero, or lie at the same offset
/// in its own memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) page: u32,
    pub(super) pages: u32,
    pub(super) zero: bool,
}

impl Run {
    const fn target(self) -> Target {
        if self.zero {
            Target::ZERO
        } else {
            Target::build(0, self.page)
        }
    }
}

/// What of a new header does not come from its memory.
#[derive(Clone, Debug)]
pub(super) struct Seals {
    pub(super) own: Row,
    pub(super) vmstate: FileSeal,
    pub(super) manifest: FileSeal,
}

impl Header {
    /// A header of these parts.
    ///
    /// # Errors
    /// When an extent comes from a row that is not there, or from past the end of its file.
    pub fn new(head: Head, extents: ExtentMap) -> Result<Self, DecodeHeaderError> {
        let page = head.geometry.page_size();
        let pages: Vec<u64> = head
            .rows
            .iter()
            .map(|row| row.memory_length / page)
            .collect();
        for (_, length, target) in extents.pages() {
            if let Some((row, page)) = target.place() {
                let there = pages.get(row as usize).copied();
                let there = there.ok_or(DecodeHeaderError::Field("build of an extent"))?;
                if u64::from(page) + u64::from(length) > there {
                    return Err(DecodeHeaderError::Field("place of an extent"));
                }
            }
        }
        if head.geometry != extents.geometry() {
            return Err(DecodeHeaderError::Field("size of memory"));
        }
        Ok(Self { head, extents })
    }

    /// Where each part of guest memory lies.
    #[must_use]
    pub const fn extents(&self) -> &ExtentMap {
        &self.extents
    }

    /// Bytes of guest memory that come from each row of the table.
    #[must_use]
    pub fn bytes_by_row(&self) -> Vec<u64> {
        let mut bytes = vec![0; self.head.rows.len()];
        for (_, pages, target) in self.extents.pages() {
            if let Some((row, _)) = target.place() {
                bytes[row as usize] += self.head.geometry.bytes(pages);
            }
        }
        bytes
    }

    /// The header of a build that holds all of memory itself. What no run names is zero.
    pub(super) fn full(geometry: Geometry, runs: &[Run], seals: Seals) -> Self {
        let mut builder = ExtentMapBuilder::new(geometry, runs.len() * 2 + 1);
        for run in runs {
            let gap = run.page - builder.next();
            builder.push(gap, Target::ZERO);
            builder.push(run.pages, run.target());
        }
        Self {
            head: Head {
                geometry,
                generation: 0,
                vmstate: seals.vmstate,
                manifest: seals.manifest,
                rows: vec![seals.own],
            },
            extents: builder.finish(),
        }
    }

    /// The header of a build that changes some pages of another's memory. What no run
    /// names is as it was. Builds from which nothing is needed any more leave the table.
    pub(super) fn overlay(parent: &Self, runs: &[Run], seals: Seals) -> Self {
        let geometry = parent.head.geometry;
        let mut builder = ExtentMapBuilder::new(geometry, parent.extents.len() + runs.len() * 2);
        // The build itself has row 0 of the new table; for now those of the parent keep
        // their order behind it.
        let shifted = |target: Target| match target.place() {
            None => Target::ZERO,
            Some((row, page)) => Target::build(row + 1, page),
        };
        let mut runs = runs.iter().copied().peekable();
        for (start, pages, target) in parent.extents.pages() {
            let end = start + pages;
            while builder.next() < end {
                let next = builder.next();
                match runs.peek() {
                    // The part of a run that lies in this extent; the rest comes with the next.
                    Some(run) if run.page <= next => {
                        let run_end = run.page + run.pages;
                        let target = Run { page: next, ..*run }.target();
                        builder.push(run_end.min(end) - next, target);
                        if run_end <= end {
                            runs.next();
                        }
                    }
                    run => {
                        let until = run.map_or(end, |run| run.page.min(end));
                        builder.push(until - next, shifted(advance(target, next - start)));
                    }
                }
            }
        }
        let rows = std::iter::once(seals.own).chain(parent.head.rows.iter().cloned());
        let (rows, extents) = prune(rows.collect(), builder.finish());
        Self {
            head: Head {
                geometry,
                generation: parent.head.generation.saturating_add(1),
                vmstate: seals.vmstate,
                manifest: seals.manifest,
                rows,
            },
            extents,
        }
    }

    /// The bytes of `header.bin`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads the bytes of a `header.bin`.
    ///
    /// # Errors
    /// When a bit of it is not as it was written, or when it makes no sense.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeHeaderError> {
        codec::decode(bytes)
    }
}

const fn advance(target: Target, pages: u32) -> Target {
    match target.place() {
        None => Target::ZERO,
        Some((row, page)) => Target::build(row, page + pages),
    }
}

/// Drops the rows but the first that no extent comes from, and numbers the rest anew.
fn prune(rows: Vec<Row>, extents: ExtentMap) -> (Vec<Row>, ExtentMap) {
    let mut used = vec![false; rows.len()];
    used[0] = true;
    for (_, _, target) in extents.pages() {
        if let Some((row, _)) = target.place() {
            used[row as usize] = true;
        }
    }
    if used.iter().all(|used| *used) {
        return (rows, extents);
    }
    let kept = (0_u32..).zip(&used).filter(|(_, used)| **used);
    let numbers: BTreeMap<u32, u32> = kept.map(|(row, _)| row).zip(0..).collect();
    let mut builder = ExtentMapBuilder::new(extents.geometry(), extents.len());
    for (_, pages, target) in extents.pages() {
        let target = match target.place() {
            None => Target::ZERO,
            Some((row, page)) => Target::build(numbers[&row], page),
        };
        builder.push(pages, target);
    }
    let rows = rows.into_iter().zip(used);
    let rows = rows.filter(|(_, used)| *used).map(|(row, _)| row).collect();
    (rows, builder.finish())
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
