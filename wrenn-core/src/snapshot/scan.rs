//! Reads a memory file that a VMM wrote, once: which pages are there, which of them are
//! zero, and the checksum of every chunk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::extent::Geometry;
use super::header::Run;
use super::{checksum, chunks, sparse};

/// Zeros of this length or more that take room on the disk give it back. Less is not
/// worth a system call.
const PUNCH_BYTES: u64 = 64 << 10;

/// What a memory file holds.
#[derive(Debug)]
pub(super) struct Scan {
    /// Pages that were written, in order: those that hold something and those of zeros.
    pub(super) runs: Vec<Run>,
    pub(super) sums: Vec<u64>,
    pub(super) chunk_size: u32,
}

impl Scan {
    /// Scans a file that is as long as memory.
    pub(super) fn of(file: &File, geometry: Geometry) -> io::Result<Self> {
        let chunk_size = u32::try_from(geometry.page_size()).unwrap_or(u32::MAX);
        let mut scanner = Scanner::new(geometry, chunk_size.max(chunks::CHUNK_SIZE));
        let mut at = 0;
        while let Some(data) = sparse::next_data(file, at, geometry.memory_size())? {
            at = data.end;
            scanner.read(file, data)?;
        }
        Ok(scanner.finish())
    }

    /// Notes of pages that are zero and were left out of the file.
    pub(super) fn add_zeros(&mut self, zeros: &[Range<u64>], geometry: Geometry) {
        self.runs.extend(zeros.iter().map(|range| Run {
            page: geometry.pages_in(range.start),
            pages: geometry.pages_in(range.end - range.start),
            zero: true,
        }));
        self.runs.sort_unstable_by_key(|run| run.page);
    }

    /// Ranges of written zeros that are worth giving back.
    fn wasted(&self, geometry: Geometry) -> impl Iterator<Item = Range<u64>> {
        let zeros = self.runs.iter().filter(|run| run.zero);
        let ranges =
            zeros.map(move |run| geometry.bytes(run.page)..geometry.bytes(run.page + run.pages));
        ranges.filter(|range| range.end - range.start >= PUNCH_BYTES)
    }

    /// Gives back the blocks of zeros. What a hole means in a diff is in the header by
    /// then. Returns whether anything was done.
    pub(super) fn punch_zeros(&self, file: &File, geometry: Geometry) -> io::Result<bool> {
        let mut punched = false;
        for range in self.wasted(geometry) {
            match sparse::punch(file, range) {
                Ok(()) => punched = true,
                // It costs room, nothing else.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(punched),
                Err(error) => return Err(error),
            }
        }
        Ok(punched)
    }
}

struct Scanner {
    geometry: Geometry,
    runs: Vec<Run>,
    sums: Vec<u64>,
    /// The chunk that is being gathered, and whether anything was.
    buffer: Vec<u8>,
    chunk: u64,
    filled: bool,
    /// Up to where everything is classified.
    done: u64,
}

impl Scanner {
    fn new(geometry: Geometry, chunk_size: u32) -> Self {
        let count = chunks::count(geometry.memory_size(), chunk_size);
        let zeros = chunks::of_zeros(chunk_size as usize);
        let mut sums = vec![zeros; usize::try_from(count).unwrap_or(0)];
        let (_, last) = chunks::place(geometry.memory_size(), chunk_size, count - 1);
        if let Some(sum) = sums.last_mut() {
            *sum = chunks::of_zeros(last);
        }
        Self {
            geometry,
            runs: Vec::new(),
            sums,
            buffer: vec![0; chunk_size as usize],
            chunk: 0,
            filled: false,
            done: 0,
        }
    }

    fn chunk_size(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// Reads data. A page of which a part is data was written as a whole.
    fn read(&mut self, file: &File, data: Range<u64>) -> io::Result<()> {
        let page = self.geometry.page_size();
        let start = (data.start & !(page - 1)).max(self.done);
        let end = data.end.next_multiple_of(page);
        let mut at = start;
        while at < end {
            let chunk = at / self.chunk_size();
            if chunk != self.chunk {
                self.flush();
                self.chunk = chunk;
            }
            let chunk_start = chunk * self.chunk_size();
            let stop = end.min(chunk_start + self.chunk_size());
            let within = index(at - chunk_start)..index(stop - chunk_start);
            file.read_exact_at(&mut self.buffer[within.clone()], at)?;
            self.filled = true;
            self.classify(at, within);
            at = stop;
        }
        self.done = self.done.max(end);
        Ok(())
    }

    fn classify(&mut self, start: u64, within: Range<usize>) {
        let page_size = self.geometry.page_size();
        let first = self.geometry.pages_in(start);
        let pages = self.buffer[within].chunks_exact(index(page_size));
        for (page, bytes) in (first..).zip(pages) {
            let zero = is_zero(bytes);
            match self.runs.last_mut() {
                Some(run) if run.zero == zero && run.page + run.pages == page => run.pages += 1,
                _ => self.runs.push(Run {
                    page,
                    pages: 1,
                    zero,
                }),
            }
        }
    }

    /// Ends a chunk.
    fn flush(&mut self) {
        if !self.filled {
            return;
        }
        let size = self.geometry.memory_size();
        let chunk_size = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let (_, length) = chunks::place(size, chunk_size, self.chunk);
        self.sums[index(self.chunk)] = checksum::of(&self.buffer[..length]);
        self.buffer.fill(0);
        self.filled = false;
    }

    fn finish(mut self) -> Scan {
        self.flush();
        Scan {
            runs: self.runs,
            sums: self.sums,
            chunk_size: u32::try_from(self.buffer.len()).unwrap_or(u32::MAX),
        }
    }
}

/// An offset within a chunk or a number of one: both are those of things in memory.
fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Whether a page holds nothing but zeros.
pub(super) fn is_zero(page: &[u8]) -> bool {
    // Wide steps that end early: most pages differ from zero in their first bytes.
    page.chunks(256)
        .all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const PAGE: u64 = 4096;

    fn file(pages: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(pages * PAGE).unwrap();
        file
    }

    fn run(page: u32, pages: u32, zero: bool) -> Run {
        Run { page, pages, zero }
    }

    #[test]
    fn holes_zeros_and_data_are_told_apart() {
        let file = file(101);
        for page in [0, 1, 15, 16, 40, 100] {
            file.write_all_at(&[7; 4096], page * PAGE).unwrap();
        }
        file.write_all_at(&[0; 2 * 4096], 41 * PAGE).unwrap();
        let geometry = Geometry::new(101 * PAGE, PAGE).unwrap();
        let scan = Scan::of(&file, geometry).unwrap();
        let wanted = [
            run(0, 2, false),
            run(15, 2, false),
            run(40, 1, false),
            run(41, 2, true),
            run(100, 1, false),
        ];
        assert_eq!(scan.runs, wanted);

        let mut whole = vec![0; 101 * 4096];
        file.read_exact_at(&mut whole, 0).unwrap();
        let sums: Vec<u64> = whole.chunks(64 << 10).map(checksum::of).collect();
        assert_eq!(scan.sums, sums);
    }

    #[test]
    fn zeros_give_their_room_back_and_keep_their_checksums() {
        let file = file(256);
        file.write_all_at(&[0; 200 * 4096], 0).unwrap();
        file.write_all_at(&[1], 150 * PAGE).unwrap();
        let geometry = Geometry::new(256 * PAGE, PAGE).unwrap();
        let scan = Scan::of(&file, geometry).unwrap();
        let allocated = || file.metadata().unwrap().blocks();
        let before = allocated();
        assert!(scan.punch_zeros(&file, geometry).unwrap());
        assert!(allocated() < before / 50);
        assert_eq!(Scan::of(&file, geometry).unwrap().sums, scan.sums);
    }

    #[test]
    fn a_large_page_is_written_as_a_whole() {
        let file = file(2048);
        file.write_all_at(&[7], 700 * PAGE).unwrap();
        file.write_all_at(&[0; 1], 1500 * PAGE).unwrap();
        file.write_all_at(&[7], 1700 * PAGE).unwrap();
        let geometry = Geometry::new(2048 * PAGE, 512 * PAGE).unwrap();
        let scan = Scan::of(&file, geometry).unwrap();
        assert_eq!(
            scan.runs,
            [run(1, 1, false), run(2, 1, true), run(3, 1, false)]
        );
        assert_eq!(scan.sums.len(), 4);
    }
}
