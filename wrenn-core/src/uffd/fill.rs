//! Bringing pages: for a fault, and ahead of need.
//!
//! # Pages that are given up
//!
//! A balloon gives pages up with `madvise(MADV_DONTNEED)`; they are zero from then on. The
//! kernel tells us by an event, and holds the `madvise` back until the event is *read*:
//!
//! ```text
//! VMM     madvise ──▶ event queued ┄┄ waits ┄┄┄┄┄┄┄▶ goes on: pages dropped
//! kernel              UFFDIO_COPY answers EAGAIN ───▶│ and fills again
//! pager                              reads the event ┘
//! ```
//!
//! So a worker that has chosen saved contents for a page, and makes its call after another
//! one has read the event, would bring back what was given up. Older kernels even let a
//! call run on that had begun before the event. Hence the *gate*: who reads events holds it
//! alone; who fills pages holds it shared from the choice of contents to the end of the
//! call. Whatever may wait for a disk is done before.

use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::PAGE_SIZE;
use super::counters::{Tally, add};
use super::layout::{Layout, Region};
use super::source::{FilePlace, MemorySource, ReadError};
use super::spent::Spent;
use super::sys::{Event, Filled, SourceAddress, Userfaultfd};
use super::working_set::Recorder;

/// Why a pager cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The source does not give its contents.
    #[error("cannot bring guest memory at {offset:#x}")]
    Read {
        /// The guest memory that was asked for.
        offset: u64,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// The VM waits for a page that is not among those that were handed over.
    #[error("the VM waits for a page at {0:#x}, which is not memory of the guest")]
    NotGuestMemory(u64),
    /// The kernel does not take a page.
    #[error("cannot fill guest memory at {offset:#x}")]
    Fill {
        /// The guest memory that was asked for.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The userfaultfd is of no use.
    #[error("cannot read events of the userfaultfd")]
    ReadEvent(#[source] io::Error),
    /// A VMM does not do such things.
    #[error("the VMM {0}, which a pager cannot follow")]
    Unexpected(&'static str),
}

/// How an attempt to fill pages ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The pages are there.
    Done,
    /// Events must be read first.
    Changing,
    /// The VM is gone.
    Gone,
}

/// What came out of the queue of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Somebody waits for the page at this address.
    Fault(u64),
    /// An event that is dealt with already.
    Handled,
    /// Nothing.
    Empty,
}

/// The memory of one VM and where it comes from.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) userfaultfd: Userfaultfd,
    pub(super) layout: Layout,
    pub(super) source: MemorySource,
    pub(super) tally: Tally,
    /// How many faults are being resolved.
    pub(super) busy: AtomicUsize,
    spent: Spent,
    gate: RwLock<()>,
    burst: u64,
}

/// Pages that one call can fill.
#[derive(Clone, Copy, Debug)]
struct Burst {
    start: u64,
    end: u64,
    content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Zero since the snapshot.
    Zero,
    /// Delivered or given up before. Some of them may be there.
    ZeroAgain,
    /// In a file, from here on.
    File(FilePlace),
    /// From many places: a huge page that spans extents.
    Mixed,
}

/// Space for pages that have to be put together first. Each worker has its own.
#[derive(Debug, Default)]
pub(super) struct Scratch(Vec<u8>);

impl Memory {
    pub(super) fn new(
        userfaultfd: Userfaultfd,
        layout: Layout,
        source: MemorySource,
        burst: u64,
    ) -> Self {
        Self {
            spent: Spent::new(source.length()),
            burst: burst.next_power_of_two().max(PAGE_SIZE),
            userfaultfd,
            layout,
            source,
            tally: Tally::default(),
            busy: AtomicUsize::default(),
            gate: RwLock::default(),
        }
    }

    /// Takes the next event. Nobody fills pages meanwhile, see the head of this module.
    pub(super) fn next(&self) -> Result<Next, FillError> {
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        match self.userfaultfd.read().map_err(FillError::ReadEvent)? {
            None => Ok(Next::Empty),
            Some(Event::Fault(address)) => Ok(Next::Fault(address)),
            Some(Event::Removed { start, end }) => {
                for (from, to) in self.layout.offsets(start, end) {
                    self.spent.add(from, to);
                    add(&self.tally.removed, to - from);
                }
                Ok(Next::Handled)
            }
            Some(Event::Unmapped) => Ok(Next::Handled),
            Some(Event::Unexpected(what)) => Err(FillError::Unexpected(what)),
        }
    }

    /// Resolves a fault, and brings what lies around it.
    pub(super) fn resolve(
        &self,
        address: u64,
        recorder: Option<&Recorder>,
        scratch: &mut Scratch,
    ) -> Result<Attempt, FillError> {
        let region = self.layout.at_address(address);
        let region = region.ok_or(FillError::NotGuestMemory(address))?;
        let within = address - region.host;
        let wanted = region.offset + within / region.page_size * region.page_size;
        if !self.is_spent(&region, wanted) {
            self.populate(&region, &self.around(&region, wanted)?, scratch)?;
        }
        let gate = self.gate();
        let burst = self.choose(&region, wanted)?;
        // Before the VM goes on, so that the order is that of its needs.
        if let (Some(recorder), true) = (recorder, burst.content != Content::ZeroAgain) {
            recorder.needed(burst.start, burst.end);
        }
        let attempt = self.fill(&region, burst, wanted, scratch)?;
        drop(gate);
        if attempt == Attempt::Done {
            add(&self.tally.bursts, 1);
        }
        Ok(attempt)
    }

    /// Brings a part of a range that nobody has asked for yet. Says where it ended; pages
    /// that are spent are left as they are.
    pub(super) fn prefetch(
        &self,
        start: u64,
        end: u64,
        scratch: &mut Scratch,
    ) -> Result<(u64, Attempt), FillError> {
        let Some(region) = self.layout.at_offset(start) else {
            return Ok((end, Attempt::Done));
        };
        let first = start / region.page_size * region.page_size;
        if self.is_spent(&region, first) {
            return Ok((first + region.page_size, Attempt::Done));
        }
        let mut around = self.around(&region, first)?;
        around.cut(first, end, region.page_size);
        self.populate(&region, &around, scratch)?;
        let gate = self.gate();
        if self.is_spent(&region, first) {
            return Ok((first + region.page_size, Attempt::Done));
        }
        let mut burst = self.choose(&region, first)?;
        burst.cut(first, end, region.page_size);
        let attempt = self.fill(&region, burst, first, scratch)?;
        drop(gate);
        if attempt == Attempt::Done {
            add(&self.tally.prefetched, burst.end - burst.start);
        }
        Ok((burst.end, attempt))
    }

    fn gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A huge page counts as spent as soon as any part of it is: it is delivered and given
    /// up whole.
    fn is_spent(&self, region: &Region, offset: u64) -> bool {
        self.spent.contains_any(offset, offset + region.page_size)
    }

    /// The aligned neighbourhood of a page, as far as it has the same origin.
    fn around(&self, region: &Region, wanted: u64) -> Result<Burst, FillError> {
        let extent = self.source.at(wanted);
        let extent = extent.ok_or(FillError::NotGuestMemory(region.address(wanted)))?;
        let page_end = wanted + region.page_size;
        if extent.offset > wanted || extent.end() < page_end {
            return Ok(Burst {
                start: wanted,
                end: page_end,
                content: Content::Mixed,
            });
        }
        let size = self.burst.max(region.page_size);
        // Blocks are aligned within the region, so that huge pages are never cut.
        let block = region.offset + (wanted - region.offset) / size * size;
        let whole = |offset: u64| (offset - region.offset).next_multiple_of(region.page_size);
        let start = block.max(region.offset + whole(extent.offset.max(region.offset)));
        let end = block.saturating_add(size).min(region.end());
        let within = extent.end().min(end) - region.offset;
        let end = region.offset + within / region.page_size * region.page_size;
        let content = FilePlace::of(&extent, start).map_or(Content::Zero, Content::File);
        Ok(Burst {
            start,
            end,
            content,
        })
    }

    /// What to bring for a page: as much around it as is wanted still.
    fn choose(&self, region: &Region, wanted: u64) -> Result<Burst, FillError> {
        let page = region.page_size;
        let mut burst = self.around(region, wanted)?;
        let (mut start, mut end) = (wanted, wanted + page);
        if self.is_spent(region, wanted) {
            while end < burst.end && self.spent.contains_all(end, end + page) {
                end += page;
            }
            return Ok(Burst {
                start,
                end,
                content: Content::ZeroAgain,
            });
        }
        while start > burst.start && !self.is_spent(region, start - page) {
            start -= page;
        }
        while end < burst.end && !self.is_spent(region, end) {
            end += page;
        }
        burst.cut(start, end, page);
        Ok(burst)
    }

    /// Reads from disk what is not in memory yet, and puts together what is in pieces.
    fn populate(
        &self,
        region: &Region,
        burst: &Burst,
        scratch: &mut Scratch,
    ) -> Result<(), FillError> {
        let read = match burst.content {
            Content::File(place) => self.source.populate(place, burst.end - burst.start),
            Content::Mixed => self
                .source
                .read(burst.start, scratch.space(region.page_size)),
            Content::Zero | Content::ZeroAgain => Ok(()),
        };
        read.map_err(read_error(burst.start))
    }

    /// Fills a burst, page by page where others were first. The gate is held.
    fn fill(
        &self,
        region: &Region,
        mut burst: Burst,
        wanted: u64,
        scratch: &mut Scratch,
    ) -> Result<Attempt, FillError> {
        let page = region.page_size;
        let (mut at, mut present) = (burst.start, 0);
        let attempt = loop {
            if at >= burst.end {
                break Attempt::Done;
            }
            match self.fill_from(region, &burst, at, scratch)? {
                Filled::Bytes(bytes) => {
                    let next = (at + bytes).min(burst.end);
                    self.spent.add(at, next);
                    let zero = matches!(burst.content, Content::Zero | Content::ZeroAgain);
                    let counter = if zero {
                        &self.tally.zeroed
                    } else {
                        &self.tally.copied
                    };
                    add(counter, bytes);
                    at = next;
                }
                Filled::Present => {
                    self.spent.add(at, at + page);
                    present += 1;
                    at += page;
                    if burst.content == Content::ZeroAgain {
                        burst.end = at;
                    }
                }
                Filled::Changing if at > wanted => {
                    burst.end = at;
                }
                Filled::Changing => {
                    add(&self.tally.retries, 1);
                    break Attempt::Changing;
                }
                Filled::Gone => break Attempt::Gone,
                // A neighbour may be in a mapping of its own; the page itself may not.
                Filled::NotWatched if burst.end - burst.start > page => {
                    burst.cut(wanted, wanted + page, page);
                    at = wanted;
                }
                Filled::NotWatched => {
                    return Err(fill_error(wanted, nix::errno::Errno::ENOENT.into()));
                }
                Filled::SourceFault => {
                    if let Content::File(place) = burst.content {
                        let unreadable = self.source.unreadable(place);
                        unreadable.map_err(read_error(wanted))?;
                    }
                    return Err(fill_error(wanted, nix::errno::Errno::EFAULT.into()));
                }
                Filled::Failed(errno) => return Err(fill_error(wanted, errno.into())),
            }
        };
        if present > 0 {
            add(&self.tally.present, present);
            // Whoever brought them has woken those who waited then, not those who came after.
            let length = burst.end - burst.start;
            self.userfaultfd
                .wake(region.address(burst.start), length)
                .map_err(|error| fill_error(wanted, error))?;
        }
        Ok(attempt)
    }

    /// One call.
    fn fill_from(
        &self,
        region: &Region,
        burst: &Burst,
        at: u64,
        scratch: &mut Scratch,
    ) -> Result<Filled, FillError> {
        let (address, length) = (region.address(at), burst.end - at);
        let from = |source, length| self.userfaultfd.copy(address, source, length);
        Ok(match burst.content {
            Content::File(place) => {
                let place = place.after(at - burst.start);
                let source = self.source.address(place);
                from(source.map_err(read_error(at))?, length)
            }
            Content::Zero | Content::ZeroAgain if region.page_size == PAGE_SIZE => {
                self.userfaultfd.zero(address, length)
            }
            // The kernel has no shared zero page of this size.
            Content::Zero | Content::ZeroAgain => {
                let bytes = scratch.space(region.page_size);
                bytes.fill(0);
                from(SourceAddress::of(bytes), region.page_size)
            }
            // `populate` has put it there.
            Content::Mixed => {
                let bytes = scratch.space(region.page_size);
                from(SourceAddress::of(bytes), region.page_size)
            }
        })
    }
}

impl Burst {
    /// Keeps the part that lies within a range, whose ends are rounded outwards to pages.
    fn cut(&mut self, start: u64, end: u64, page: u64) {
        let old = self.start;
        self.start = start.max(self.start);
        let length = end.saturating_sub(self.start).next_multiple_of(page);
        self.end = self.end.min(self.start + length);
        if let Content::File(place) = &mut self.content {
            *place = place.after(self.start - old);
        }
    }
}

impl Scratch {
    fn space(&mut self, length: u64) -> &mut [u8] {
        let length = usize::try_from(length).unwrap_or(0);
        self.0.resize(length, 0);
        &mut self.0
    }
}

fn fill_error(offset: u64, source: io::Error) -> FillError {
    FillError::Fill { offset, source }
}

fn read_error(offset: u64) -> impl FnOnce(ReadError) -> FillError {
    move |source| FillError::Read { offset, source }
}
