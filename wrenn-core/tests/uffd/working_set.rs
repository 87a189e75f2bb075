//! Recorded at the first resume, prefetched at the next.

use std::time::Duration;

use wrenn_core::uffd::stand_in::GuestMemory;
use wrenn_core::uffd::{PAGE_SIZE, Pager, Report, WorkingSet, WorkingSetFile};

use crate::saved::{Saved, ended};

const BLOCK: u64 = 32 * PAGE_SIZE;

/// What the VM of these tests needs: one page in each of these blocks.
const NEEDS: [u64; 5] = [7, 3, 30, 31, 0];

fn resume(saved: &Saved, patience: impl Fn()) -> Report {
    let mut config = saved.config();
    config.working_set = Some(WorkingSetFile {
        path: saved.path("working-set.bin"),
        window: Duration::from_secs(3600),
        recorded: None,
    });
    let pager = Pager::bind(config).unwrap();
    let pager = std::thread::spawn(|| pager.serve());
    let memory = GuestMemory::new(saved.length()).unwrap();
    let connection = memory.hand_over(&saved.socket()).unwrap();
    patience();
    for block in NEEDS {
        let offset = block * BLOCK + 5 * PAGE_SIZE;
        assert_eq!(memory.load(offset), saved.word(offset));
    }
    drop(connection);
    ended(pager)
}

#[test]
fn it_saves_the_faults_and_makes_nothing_else_resident() {
    let saved = Saved::of_pages(64 * 32);
    let first = resume(&saved, || {}).counters;
    assert_eq!(first.faults, NEEDS.len() as u64);
    assert_eq!(first.prefetched_bytes, 0);

    let path = saved.path("working-set.bin");
    let set = WorkingSet::load(&path, saved.length()).unwrap().unwrap();
    assert_eq!(set.bytes(), NEEDS.len() as u64 * BLOCK);
    let order: Vec<u64> = set
        .ranges()
        .iter()
        .flat_map(|range| (0..range.length / BLOCK).map(|at| range.offset / BLOCK + at))
        .collect();
    assert_eq!(order, NEEDS);

    // With time before the first fault, there are none.
    let resident = || resident_bytes();
    let before = resident();
    let patience = || {
        while resident() < before + set.bytes() {
            std::thread::yield_now();
        }
    };
    let second = resume(&saved, patience).counters;
    assert_eq!(second.prefetched_bytes, set.bytes());
    assert_eq!(second.copied_bytes, set.bytes());
    assert!(second.faults <= 1, "{second:?}");
}

#[test]
fn a_damaged_one_is_recorded_anew() {
    let saved = Saved::of_pages(64 * 32);
    let path = saved.path("working-set.bin");
    std::fs::write(&path, b"not a working set").unwrap();
    let report = resume(&saved, || {});
    assert_eq!(report.counters.prefetched_bytes, 0);
    let set = WorkingSet::load(&path, saved.length()).unwrap().unwrap();
    assert_eq!(set.bytes(), NEEDS.len() as u64 * BLOCK);
}

/// What a VM gives up is not brought by the prefetch either.
#[test]
fn prefetching_brings_back_nothing_that_was_given_up() {
    let saved = Saved::of_pages(64 * 32);
    resume(&saved, || {});
    for _ in 0..20 {
        let mut config = saved.config();
        config.working_set = Some(WorkingSetFile {
            path: saved.path("working-set.bin"),
            window: Duration::ZERO,
            recorded: None,
        });
        let pager = Pager::bind(config).unwrap();
        let pager = std::thread::spawn(|| pager.serve());
        let memory = GuestMemory::new(saved.length()).unwrap();
        let connection = memory.hand_over(&saved.socket()).unwrap();
        for block in NEEDS {
            memory.remove(block * BLOCK, BLOCK).unwrap();
            assert_eq!(memory.load(block * BLOCK), 0);
        }
        for block in NEEDS {
            for page in 0..32 {
                assert_eq!(memory.load(block * BLOCK + page * PAGE_SIZE), 0);
            }
        }
        drop(connection);
        ended(pager);
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().trim_end_matches("kB").trim();
    kib.parse::<u64>().unwrap() * 1024
}
