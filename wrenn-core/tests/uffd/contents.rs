//! What a VM reads: what was saved, until it gives the page up.

use std::collections::HashMap;
use std::sync::Barrier;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use wrenn_core::uffd::stand_in::{GuestMemory, Part, send};
use wrenn_core::uffd::{HUGE_PAGE_SIZE, PAGE_SIZE};

use crate::saved::{Saved, ended};

const WORDS_OF_A_PAGE: u64 = PAGE_SIZE / 8;

/// What a thread does to a page of its own.
#[derive(Clone, Copy, Debug)]
enum Act {
    Read,
    Write,
    Remove,
}

/// The pages that a thread has changed: what all words of one are.
type Changed = HashMap<u64, u64>;

fn expect(memory: &GuestMemory, saved: &Saved, changed: &Changed, page: u64, step: u64) {
    for word in (0..WORDS_OF_A_PAGE).step_by(usize::try_from(step).unwrap()) {
        let offset = page * PAGE_SIZE + word * 8;
        let wanted = match changed.get(&page) {
            Some(contents) => *contents,
            None => saved.word(offset),
        };
        let found = memory.load(offset);
        assert_eq!(found, wanted, "page {page}, word {word}, {changed:?}");
    }
}

fn act(memory: &GuestMemory, saved: &Saved, changed: &mut Changed, page: u64, act: Act) {
    match act {
        Act::Read => {}
        Act::Write => {
            let contents = page << 8 | 0xff;
            for word in 0..WORDS_OF_A_PAGE {
                memory.store(page * PAGE_SIZE + word * 8, contents);
            }
            changed.insert(page, contents);
        }
        Act::Remove => {
            memory.remove(page * PAGE_SIZE, PAGE_SIZE).unwrap();
            changed.insert(page, 0);
        }
    }
    expect(memory, saved, changed, page, 97);
}

/// Each thread has every n-th page for itself, so that it knows what must be in it, while
/// the neighbours that come along belong to the others.
fn from_many_threads(
    saved: &Saved,
    parts: &[Part],
    plans: &[Vec<(u64, Act)>],
) -> Result<(), TestCaseError> {
    let pager = saved.serve();
    let memory = GuestMemory::new(saved.length()).unwrap();
    let message = memory.describe(parts);
    let connection = send(
        &saved.socket(),
        message.as_bytes(),
        &[std::os::fd::AsFd::as_fd(&memory)],
    )
    .unwrap();
    let pages = saved.length() / PAGE_SIZE;
    let count = plans.len() as u64;
    std::thread::scope(|scope| {
        for (thread, plan) in (0..).zip(plans) {
            let memory = &memory;
            scope.spawn(move || {
                let mut changed = Changed::new();
                for (number, what) in plan {
                    let page = number % pages / count * count + thread;
                    if page < pages {
                        act(memory, saved, &mut changed, page, *what);
                    }
                }
                for page in (thread..pages).step_by(plans.len()) {
                    expect(memory, saved, &changed, page, 1);
                }
            });
        }
    });
    drop(connection);
    let report = ended(pager);
    prop_assert!(report.counters.faults > 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_byte_is_right_whoever_reads_writes_and_gives_up(
        extents in prop::collection::vec((1..90u64, prop::option::weighted(0.7, 0..3u32)), 1..12),
        plans in prop::collection::vec(
            prop::collection::vec(
                (any::<u64>(), prop_oneof![Just(Act::Read), Just(Act::Write), Just(Act::Remove)]),
                0..120),
            4),
        split in any::<prop::sample::Index>(),
    ) {
        let saved = Saved::new(&extents);
        // Two regions, the second one's contents first.
        let length = saved.length();
        let split = split.index(usize::try_from(length / PAGE_SIZE).unwrap());
        let split = split as u64 * PAGE_SIZE;
        let parts = if split == 0 {
            vec![Part { at: 0, size: length, offset: 0 }]
        } else {
            vec![
                Part { at: 0, size: split, offset: 0 },
                Part { at: split, size: length - split, offset: split },
            ]
        };
        from_many_threads(&saved, &parts, &plans)?;
    }
}

#[test]
fn regions_need_not_be_in_order() {
    let saved = Saved::new(&[(10, Some(0)), (3, None), (7, Some(1))]);
    let pager = saved.serve();
    let memory = GuestMemory::new(saved.length()).unwrap();
    let (length, cut) = (saved.length(), 8 * PAGE_SIZE);
    let parts = [
        Part {
            at: 0,
            size: length - cut,
            offset: cut,
        },
        Part {
            at: length - cut,
            size: cut,
            offset: 0,
        },
    ];
    let message = memory.describe(&parts);
    let connection = send(
        &saved.socket(),
        message.as_bytes(),
        &[std::os::fd::AsFd::as_fd(&memory)],
    );
    for at in (0..length).step_by(8) {
        assert_eq!(memory.load(at), saved.word((at + cut) % length), "{at:#x}");
    }
    drop(connection);
    ended(pager);
}

/// One thread faults beside a page that another one gives up at the same moment.
#[test]
fn what_is_given_up_never_comes_back() {
    const BLOCK: u64 = 32 * PAGE_SIZE;
    const BLOCKS: u64 = 512;
    let saved = Saved::of_pages(BLOCKS * BLOCK / PAGE_SIZE);
    let pager = saved.serve();
    let memory = GuestMemory::new(saved.length()).unwrap();
    let connection = memory.hand_over(&saved.socket()).unwrap();
    let together = Barrier::new(2);
    let mut came_back: Vec<u64> = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for block in 0..BLOCKS {
                together.wait();
                std::hint::black_box(memory.load(block * BLOCK + 31 * PAGE_SIZE));
            }
        });
        for block in 0..BLOCKS {
            together.wait();
            let from = block * BLOCK + PAGE_SIZE;
            memory.remove(from, 24 * PAGE_SIZE).unwrap();
            let back = (0..24).any(|page| memory.load(from + page * PAGE_SIZE) != 0);
            came_back.extend(back.then_some(block));
        }
    });
    drop(connection);
    let report = ended(pager);
    assert!(came_back.is_empty(), "pages came back in {came_back:?}");
    assert_eq!(report.counters.removed_bytes, BLOCKS * 24 * PAGE_SIZE);
}

#[test]
fn a_page_that_was_delivered_and_given_up_reads_as_zero() {
    let saved = Saved::of_pages(64);
    let pager = saved.serve();
    let memory = GuestMemory::new(saved.length()).unwrap();
    let connection = memory.hand_over(&saved.socket()).unwrap();
    assert_eq!(memory.load(0), saved.word(0));
    memory.remove(0, saved.length()).unwrap();
    for offset in (0..saved.length()).step_by(8) {
        assert_eq!(memory.load(offset), 0);
    }
    memory.store(8, 7);
    assert_eq!((memory.load(0), memory.load(8)), (0, 7));
    drop(connection);
    let counters = ended(pager).counters;
    assert_eq!(counters.removed_bytes, saved.length());
    assert_eq!(counters.copied_bytes, 32 * PAGE_SIZE);
}

#[test]
fn a_fault_brings_its_neighbourhood_and_no_more() {
    // The extent ends within the block of 32 pages.
    let saved = Saved::new(&[(40, Some(0)), (24, Some(1))]);
    let pager = saved.serve();
    let memory = GuestMemory::new(saved.length()).unwrap();
    let connection = memory.hand_over(&saved.socket()).unwrap();
    assert_eq!(memory.load(35 * PAGE_SIZE), saved.word(35 * PAGE_SIZE));
    // All of these came along: there is nobody to answer another fault.
    drop(connection);
    let counters = ended(pager).counters;
    assert_eq!((counters.faults, counters.bursts), (1, 1));
    assert_eq!(counters.copied_bytes, 8 * PAGE_SIZE);
    for page in 32..40 {
        assert_eq!(memory.load(page * PAGE_SIZE), saved.word(page * PAGE_SIZE));
    }
}

/// The second huge page is put together from three extents.
fn three_origins() -> Saved {
    let pages = HUGE_PAGE_SIZE / PAGE_SIZE;
    Saved::new(&[
        (pages + 5, Some(0)),
        (100, None),
        (2 * pages - 105, Some(1)),
        (pages, None),
    ])
}

fn read_all_but_the_first_huge_page(saved: &Saved, memory: &GuestMemory) {
    let pager = saved.serve();
    let connection = memory.hand_over(&saved.socket()).unwrap();
    memory.remove(0, HUGE_PAGE_SIZE).unwrap();
    for offset in (0..saved.length()).step_by(8) {
        let given_up = offset < HUGE_PAGE_SIZE;
        let wanted = if given_up { 0 } else { saved.word(offset) };
        assert_eq!(memory.load(offset), wanted, "{offset:#x}");
    }
    drop(connection);
    assert_eq!(ended(pager).counters.faults, 4);
}

#[test]
fn huge_pages_come_whole_from_wherever_their_parts_are() {
    let saved = three_origins();
    let memory = GuestMemory::as_if_huge(saved.length()).unwrap();
    read_all_but_the_first_huge_page(&saved, &memory);
}

// Reserving huge pages changes the host, which is not a test's to do.
#[test]
#[ignore = "needs huge pages: sysctl vm.nr_hugepages=16"]
fn true_huge_pages() {
    let saved = three_origins();
    let memory = GuestMemory::huge(saved.length()).unwrap();
    read_all_but_the_first_huge_page(&saved, &memory);
}
