//! A memory to restore, whose every word is known, and a pager for it.

use std::path::PathBuf;
use std::thread::JoinHandle;

use tempfile::TempDir;
use wrenn_core::uffd::{
    Backing, Extent, MemorySource, Outcome, PAGE_SIZE, Pager, PagerConfig, Report,
};

/// What stands in the file at this offset.
pub(crate) fn word_of_file(file: u32, offset: u64) -> u64 {
    let seed = offset ^ u64::from(file) << 56;
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) | 1
}

#[derive(Debug)]
pub(crate) struct Saved {
    directory: TempDir,
    pub(crate) extents: Vec<Extent>,
    pub(crate) files: Vec<PathBuf>,
}

impl Saved {
    /// Extents of so many pages, each with its origin: a file, or zero. A file's extents
    /// stand in it in reverse.
    pub(crate) fn new(extents: &[(u64, Option<u32>)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let count = extents.iter().filter_map(|(_, file)| *file).max();
        let count = count.map_or(0, |most| most + 1);
        let mut left: Vec<u64> = (0..count)
            .map(|file| {
                let own = extents.iter().filter(|(_, origin)| *origin == Some(file));
                own.map(|(pages, _)| pages * PAGE_SIZE).sum()
            })
            .collect();
        let files = (0u32..)
            .zip(&left)
            .map(|(file, length)| {
                let path = directory.path().join(format!("memory-{file}"));
                let words = (0..length / 8).map(|word| word_of_file(file, word * 8));
                let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
                std::fs::write(&path, bytes).unwrap();
                path
            })
            .collect();
        let mut offset = 0;
        let extents = extents
            .iter()
            .map(|(pages, origin)| {
                let length = pages * PAGE_SIZE;
                let backing = match *origin {
                    None => Backing::Zero,
                    Some(index) => {
                        let left = &mut left[index as usize];
                        *left -= length;
                        Backing::File {
                            index,
                            offset: *left,
                        }
                    }
                };
                let extent = Extent {
                    offset,
                    length,
                    backing,
                };
                offset += length;
                extent
            })
            .collect();
        Self {
            directory,
            extents,
            files,
        }
    }

    /// One file with so many pages.
    pub(crate) fn of_pages(pages: u64) -> Self {
        Self::new(&[(pages, Some(0))])
    }

    pub(crate) fn length(&self) -> u64 {
        self.extents.last().unwrap().end()
    }

    pub(crate) fn word(&self, offset: u64) -> u64 {
        let behind = self
            .extents
            .partition_point(|extent| extent.offset <= offset);
        let extent = self.extents[behind - 1];
        match extent.backing {
            Backing::Zero => 0,
            Backing::File { index, offset: at } => {
                word_of_file(index, at + (offset - extent.offset))
            }
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("pager.sock")
    }

    pub(crate) fn config(&self) -> PagerConfig {
        let source = MemorySource::open(self.extents.clone(), &self.files).unwrap();
        let mut config = PagerConfig::new(&self.socket(), source);
        config.workers = 3.try_into().unwrap();
        config
    }

    /// Starts a pager on a thread of this process.
    pub(crate) fn serve(&self) -> JoinHandle<Report> {
        let pager = Pager::bind(self.config()).unwrap();
        std::thread::spawn(|| pager.serve())
    }
}

pub(crate) fn ended(pager: JoinHandle<Report>) -> Report {
    let report = pager.join().unwrap();
    assert!(matches!(report.outcome, Outcome::Ended), "{report:?}");
    report
}
