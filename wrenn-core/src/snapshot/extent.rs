//! The map from guest memory to where its bytes lie.
//!
//! ```text
//! guest page   0        5    7                12
//!              ├────────┼────┼────────────────┤
//!              │ row 0  │zero│ row 2          │
//! starts       [0,       5,   7]                first page of each extent
//! targets      [0:0,     –,   2:31]             row and page in that row's memory file
//! ```
//!
//! An extent ends where the next begins, and the last one at the end of memory: a map
//! with a gap or an overlap cannot be written down. Offsets are those of the memory file
//! that the VMM writes and reads. Where memory has a hole (below 4 GiB, for devices), an
//! address in the guest is not an offset; the VMM says which region lies where.
//!
//! A lookup first reads a coarse index, which leaves about 16 extents where they are
//! evenly spread, and searches among those by halves: O(log n) however they lie.

use std::ops::Range;

/// Extents for each slot of the coarse index: the page numbers of as many fill one cache
/// line.
const EXTENTS_PER_SLOT: usize = 16;
/// Marks an extent of zeros in [`Target::row`].
const ZERO: u32 = u32::MAX;

/// Size of a guest's memory and of its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    page_shift: u32,
    pages: u32,
}

/// Sizes that no guest's memory can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "memory of {memory_size} bytes in pages of {page_size}: pages are a power of two from 4 KiB to 1 GiB, \
     and memory is a whole number of them, up to {}", u32::MAX - 1
)]
pub struct InvalidGeometry {
    /// Bytes of memory.
    pub memory_size: u64,
    /// Bytes of a page.
    pub page_size: u64,
}

impl Geometry {
    /// Memory of so many bytes, in pages of so many bytes.
    ///
    /// # Errors
    /// When memory is no whole number of pages, empty, or too large.
    pub fn new(memory_size: u64, page_size: u64) -> Result<Self, InvalidGeometry> {
        let error = InvalidGeometry {
            memory_size,
            page_size,
        };
        let fits = page_size.is_power_of_two() && (4096..=1 << 30).contains(&page_size);
        if !fits || !memory_size.is_multiple_of(page_size) {
            return Err(error);
        }
        match u32::try_from(memory_size / page_size) {
            Ok(pages) if pages > 0 && pages < u32::MAX => Ok(Self {
                page_shift: page_size.trailing_zeros(),
                pages,
            }),
            _ => Err(error),
        }
    }

    /// Bytes of memory.
    #[must_use]
    pub const fn memory_size(self) -> u64 {
        (self.pages as u64) << self.page_shift
    }

    /// Bytes of a page.
    #[must_use]
    pub const fn page_size(self) -> u64 {
        1 << self.page_shift
    }

    pub(super) const fn pages(self) -> u32 {
        self.pages
    }

    /// The number of the page that begins at an offset, if one does.
    fn page_number(self, offset: u64) -> Option<u32> {
        let page = u32::try_from(offset >> self.page_shift).ok()?;
        (self.bytes(page) == offset).then_some(page)
    }

    /// How many whole pages these bytes of memory are.
    #[allow(clippy::cast_possible_truncation, reason = "page numbers have 32 bits")]
    pub(super) const fn pages_in(self, bytes: u64) -> u32 {
        (bytes >> self.page_shift) as u32
    }

    pub(super) const fn bytes(self, pages: u32) -> u64 {
        (pages as u64) << self.page_shift
    }
}

/// Where the bytes of an extent come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// They are zero.
    Zero,
    /// They lie in a build's memory file.
    Build {
        /// The build: its row in the header's table.
        row: u32,
        /// Where they begin in that file, in bytes.
        offset: u64,
    },
}

/// A part of guest memory that comes from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in guest memory, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Where its bytes come from.
    pub source: Source,
}

impl Extent {
    /// The part of it that lies in `range`, which must touch it.
    fn clip(self, range: &Range<u64>) -> Self {
        let start = self.offset.max(range.start);
        let end = (self.offset + self.length).min(range.end);
        let source = match self.source {
            Source::Zero => Source::Zero,
            Source::Build { row, offset } => Source::Build {
                row,
                offset: offset + (start - self.offset),
            },
        };
        Self {
            offset: start,
            length: end.saturating_sub(start),
            source,
        }
    }
}

/// Where an extent's pages lie: a row and a page in its file, or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    row: u32,
    page: u32,
}

impl Target {
    pub(super) const ZERO: Self = Self { row: ZERO, page: 0 };

    pub(super) const fn build(row: u32, page: u32) -> Self {
        Self { row, page }
    }

    /// Row and page, unless it is zero.
    pub(super) const fn place(self) -> Option<(u32, u32)> {
        if self.row == ZERO {
            None
        } else {
            Some((self.row, self.page))
        }
    }

    /// What lies `pages` further on.
    const fn after(self, pages: u32) -> Self {
        if self.row == ZERO {
            self
        } else {
            Self {
                row: self.row,
                page: self.page.wrapping_add(pages),
            }
        }
    }
}

/// Extents that cover guest memory exactly, sorted, neighbours joined where they can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentMap {
    geometry: Geometry,
    starts: Vec<u32>,
    targets: Vec<Target>,
    /// Slot `s` holds the extent of page `s << slot_shift`; one more than there are slots.
    index: Vec<u32>,
    slot_shift: u32,
}

/// A part of memory that does not consist of whole pages, or lies past the end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no extent of {length} bytes can come from {place:?} at {offset} in guest memory")]
pub struct InvalidExtent {
    /// Where it would begin in guest memory.
    pub offset: u64,
    /// How long it would be.
    pub length: u64,
    /// Where its bytes would come from.
    pub place: Source,
}

impl ExtentMap {
    /// A map of parts that follow each other from the first page on: how long each is, and
    /// where its bytes come from. Memory behind the last part is zero.
    ///
    /// # Errors
    /// When a part is no whole number of pages, or lies past the end of memory.
    pub fn of_parts(
        geometry: Geometry,
        parts: impl IntoIterator<Item = (u64, Source)>,
    ) -> Result<Self, InvalidExtent> {
        let parts = parts.into_iter();
        let mut builder = ExtentMapBuilder::new(geometry, parts.size_hint().0);
        for (length, place) in parts {
            let invalid = InvalidExtent {
                offset: geometry.bytes(builder.next),
                length,
                place,
            };
            let pages = geometry.page_number(length).ok_or(invalid)?;
            if pages > geometry.pages - builder.next {
                return Err(invalid);
            }
            let target = match place {
                Source::Zero => Target::ZERO,
                Source::Build { row: ZERO, .. } => return Err(invalid),
                Source::Build { row, offset } => {
                    Target::build(row, geometry.page_number(offset).ok_or(invalid)?)
                }
            };
            builder.push(pages, target);
        }
        Ok(builder.finish())
    }

    /// Size of memory and pages.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// How many extents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Never: memory has at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The extent that holds a byte of guest memory, or `None` past its end.
    #[must_use]
    #[inline]
    pub fn lookup(&self, offset: u64) -> Option<Extent> {
        let page = u32::try_from(offset >> self.geometry.page_shift).ok()?;
        (page < self.geometry.pages).then(|| self.extent(self.position(page)))
    }

    /// The parts of extents that lie in a range of guest memory, in order.
    pub fn extents_in(&self, range: Range<u64>) -> impl Iterator<Item = Extent> + '_ {
        let first = match u32::try_from(range.start >> self.geometry.page_shift) {
            Ok(page) if page < self.geometry.pages && range.start < range.end => {
                self.position(page)
            }
            _ => self.len(),
        };
        (first..self.len())
            .map(|position| self.extent(position))
            .take_while({
                let end = range.end;
                move |extent| extent.offset < end
            })
            .map(move |extent| extent.clip(&range))
    }

    /// All extents, in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        (0..self.len()).map(|position| self.extent(position))
    }

    /// All extents in pages: start, length, target.
    pub(super) fn pages(&self) -> impl Iterator<Item = (u32, u32, Target)> + '_ {
        (0..self.len()).map(|position| {
            let start = self.starts[position];
            (start, self.end(position) - start, self.targets[position])
        })
    }

    /// Which extent holds a page that is in memory.
    #[inline]
    fn position(&self, page: u32) -> usize {
        let slot = (page >> self.slot_shift) as usize;
        let first = self.index[slot] as usize;
        let last = self.index[slot + 1] as usize;
        // The first one begins at or before the slot, so at or before the page.
        first + self.starts[first + 1..=last].partition_point(|start| *start <= page)
    }

    fn end(&self, position: usize) -> u32 {
        let next = self.starts.get(position + 1);
        next.copied().unwrap_or(self.geometry.pages)
    }

    #[inline]
    fn extent(&self, position: usize) -> Extent {
        let start = self.starts[position];
        let source = match self.targets[position].place() {
            None => Source::Zero,
            Some((row, page)) => Source::Build {
                row,
                offset: self.geometry.bytes(page),
            },
        };
        Extent {
            offset: self.geometry.bytes(start),
            length: self.geometry.bytes(self.end(position) - start),
            source,
        }
    }
}

/// Gathers extents from the first page on.
#[derive(Debug)]
pub(super) struct ExtentMapBuilder {
    geometry: Geometry,
    next: u32,
    starts: Vec<u32>,
    targets: Vec<Target>,
}

impl ExtentMapBuilder {
    pub(super) fn new(geometry: Geometry, capacity: usize) -> Self {
        Self {
            geometry,
            next: 0,
            starts: Vec::with_capacity(capacity),
            targets: Vec::with_capacity(capacity),
        }
    }

    /// The page up to which everything is said.
    pub(super) const fn next(&self) -> u32 {
        self.next
    }

    /// Says where the next `pages` pages lie. What goes on where the last extent ends is
    /// joined to it. Pages past the end of memory are a mistake of the caller's, and cut.
    pub(super) fn push(&mut self, pages: u32, target: Target) {
        let pages = pages.min(self.geometry.pages - self.next);
        if pages == 0 {
            return;
        }
        let goes_on = match (self.starts.last(), self.targets.last()) {
            (Some(start), Some(last)) => last.after(self.next - start) == target,
            _ => false,
        };
        if !goes_on {
            self.starts.push(self.next);
            self.targets.push(target);
        }
        self.next += pages;
    }

    /// The map; what was not said is zero.
    pub(super) fn finish(mut self) -> ExtentMap {
        self.push(u32::MAX, Target::ZERO);
        let pages = self.geometry.pages;
        let wanted = (self.starts.len() / EXTENTS_PER_SLOT).max(1);
        // Slots are a power of two long: there are as many as wanted, or up to twice that.
        let slot_shift = (pages as usize / wanted).max(1).ilog2();
        let slots = (pages >> slot_shift) as usize + 1;
        let mut index = Vec::with_capacity(slots + 1);
        let mut position = 0_u32;
        for slot in 0..slots {
            let page = slot << slot_shift;
            while self
                .starts
                .get(position as usize + 1)
                .is_some_and(|start| *start as usize <= page)
            {
                position += 1;
            }
            index.push(position);
        }
        #[allow(
            clippy::cast_possible_truncation,
            reason = "there is at most one extent a page"
        )]
        index.push(self.starts.len() as u32 - 1);
        ExtentMap {
            geometry: self.geometry,
            starts: self.starts,
            targets: self.targets,
            index,
            slot_shift,
        }
    }
}

#[cfg(test)]
#[path = "extent_tests.rs"]
pub(super) mod tests;
