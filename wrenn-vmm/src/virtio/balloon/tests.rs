use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::memory::{HugePages, PAGE_SIZE, allocate, host_length};
use crate::snapshot::memory_file::{bitmap_of, forget_changes};
use crate::sys::memory::{HUGE_PAGE_SIZE, map_file};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::test_queue::{TestDriver, WRITE};

const MEMORY_MIB: u64 = 8;
const MEMORY: usize = host_length(MEMORY_MIB << 20);
const RINGS: u64 = 0x1_0000;
const BLOCK: u64 = HUGE_PAGE_SIZE as u64;
const BLOCK_LENGTH: u32 = 2 << 20;

const REPORTS: BalloonConfig = BalloonConfig {
    amount_mib: 0,
    deflate_on_oom: false,
    stats_polling_interval_s: 0,
    free_page_hinting: false,
    free_page_reporting: true,
};

/// Memory in which no byte is zero.
fn full_memory() -> GuestMemory {
    let memory = allocate(MEMORY_MIB, HugePages::None, true).unwrap();
    memory
        .write_slice(&vec![0xaa; MEMORY], GuestAddress(0))
        .unwrap();
    forget_changes(&memory);
    memory
}

/// Has a request served that comes in one of the three queues.
fn serve(memory: &GuestMemory, behind: Option<&File>, queue: usize, buffers: &[(u64, u32, u16)]) {
    let discarder = behind.map(|file| Discarder::of_file(file.try_clone().unwrap()));
    let mut device = Balloon::new(&REPORTS, discarder.unwrap_or_default());
    let mut drivers = [0, 1, 2].map(|index| TestDriver::new(memory, RINGS + index * 0x4000));
    let mut queues = [0, 1, 2].map(|index| drivers[index].queue(index));
    drivers[queue].request(buffers);
    let mut active = Active {
        queues: &mut queues,
        memory,
        interrupt: &Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
        features: FEATURE_REPORTING,
        stop: &crate::virtio::StopFlag::default(),
    };
    let progress = device.process(Cause::Queue(queue), &mut active).unwrap();
    assert_eq!(progress, Progress::Done);
    assert_eq!(drivers[queue].used_entries(), [(0, 0)]);
}

/// Which blocks of 2 MiB are zero, by their first and last bytes.
fn zero_blocks(memory: &GuestMemory) -> Vec<bool> {
    let byte = |address| -> u8 { memory.read_obj(GuestAddress(address)).unwrap() };
    (0..MEMORY_MIB / 2)
        .map(|block| {
            let ends = [block * BLOCK, (block + 1) * BLOCK - 1].map(byte);
            assert!(ends == [0, 0] || ends == [0xaa, 0xaa], "{block}: {ends:?}");
            ends == [0, 0]
        })
        .collect()
}

#[test]
fn only_what_is_asked_for_is_offered() {
    let offered = |config: &BalloonConfig| {
        let device = Balloon::new(config, Discarder::default());
        (device.features(), device.queue_sizes().len())
    };
    assert_eq!(offered(&BalloonConfig::default()), (0, 2));
    assert_eq!(offered(&REPORTS), (1 << 5, 3));
    let deflates = BalloonConfig {
        deflate_on_oom: true,
        ..REPORTS
    };
    assert_eq!(offered(&deflates), (1 << 5 | 1 << 2, 3));
}

/// Which pages are marked as changed.
fn changed(memory: &GuestMemory) -> Vec<u64> {
    let region = memory.iter().next().unwrap();
    let bitmap = bitmap_of(region).unwrap();
    let pages = 0..MEMORY / PAGE_SIZE;
    let marked = pages.filter(|page| bitmap.is_bit_set(*page));
    marked.map(|page| page as u64).collect()
}

fn pages(range: Range<u64>) -> Vec<u64> {
    (range.start / 4096..range.end / 4096).collect()
}

#[test]
fn reported_blocks_are_zero_and_count_as_changed() {
    let memory = full_memory();
    let reports = [(BLOCK, BLOCK_LENGTH, WRITE), (3 * BLOCK, 4096, WRITE)];
    serve(&memory, None, REPORTING, &reports);
    let page = 3 * BLOCK;
    let (rings, marked): (Vec<_>, Vec<_>) = changed(&memory)
        .into_iter()
        .partition(|page| *page < BLOCK / 4096);
    assert!(!rings.is_empty());
    assert_eq!(
        marked,
        [pages(BLOCK..2 * BLOCK), pages(page..page + 4096)].concat()
    );
    let byte = |address| -> u8 { memory.read_obj(GuestAddress(address)).unwrap() };
    assert_eq!((byte(page), byte(page + 4096)), (0, 0xaa));
    memory.write_obj(0xaau8, GuestAddress(page)).unwrap();
    assert_eq!(zero_blocks(&memory), [false, true, false, false]);
    // The guest uses it again.
    memory.write_obj(7u8, GuestAddress(BLOCK)).unwrap();
    assert_eq!(byte(BLOCK), 7);
}

/// A guest has much memory that it has never used: reporting it must not make a snapshot large.
#[test]
fn what_nobody_has_touched_does_not_count_as_changed() {
    let beyond = |memory: &GuestMemory| {
        let marked = changed(memory);
        marked
            .into_iter()
            .filter(|page| *page >= BLOCK / 4096)
            .count()
    };
    let report = [(BLOCK, 3 * BLOCK_LENGTH, WRITE)];
    let memory = allocate(MEMORY_MIB, HugePages::None, true).unwrap();
    serve(&memory, None, REPORTING, &report);
    assert_eq!(beyond(&memory), 0);

    let file = tempfile::tempfile().unwrap();
    file.set_len(MEMORY_MIB << 20).unwrap();
    let memory = allocate(MEMORY_MIB, HugePages::None, true).unwrap();
    map_file(&memory, GuestAddress(0), MEMORY, &file, 0).unwrap();
    serve(&memory, Some(&file), REPORTING, &report);
    assert_eq!(beyond(&memory), 0);
}

/// What is not reported, by the right queue and as whole pages of memory, stays.
#[test]
fn everything_else_stays() {
    let memory = full_memory();
    for queue in [0, 1] {
        serve(&memory, None, queue, &[(BLOCK, BLOCK_LENGTH, WRITE)]);
    }
    for odd in [
        (BLOCK, BLOCK_LENGTH, 0),
        (BLOCK, 0, WRITE),
        (BLOCK, 4095, WRITE),
        (BLOCK + 1, BLOCK_LENGTH, WRITE),
        (3 * BLOCK, 2 * BLOCK_LENGTH, WRITE),
        (4 * BLOCK, BLOCK_LENGTH, WRITE),
        (u64::MAX - 4095, BLOCK_LENGTH, WRITE),
        (BLOCK, u32::MAX, WRITE),
    ] {
        serve(&memory, None, REPORTING, &[odd]);
    }
    assert_eq!(zero_blocks(&memory), [false; 4]);
}

/// A file behind memory does not show again, and only what it holds is marked: the rest is zero
/// in it, too.
#[test]
fn blocks_of_a_mapped_file_are_replaced() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEMORY_MIB << 20).unwrap();
    let held = BLOCK + 0x10_000..BLOCK + 0x30_000;
    for at in [held.clone(), 3 * BLOCK..4 * BLOCK] {
        let bytes = vec![0xaa; host_length(at.end - at.start)];
        file.write_all_at(&bytes, at.start).unwrap();
    }
    let memory = allocate(MEMORY_MIB, HugePages::None, true).unwrap();
    map_file(&memory, GuestAddress(0), MEMORY, &file, 0).unwrap();
    // Private copies of what was a hole.
    for at in [BLOCK, 2 * BLOCK] {
        memory.write_obj(0xaau8, GuestAddress(at)).unwrap();
    }
    forget_changes(&memory);
    let reports = [
        (BLOCK, BLOCK_LENGTH, WRITE),
        (2 * BLOCK, 4096, WRITE),
        // Too little to be worth a mapping.
        (3 * BLOCK, 4096, WRITE),
    ];
    serve(&memory, Some(&file), REPORTING, &reports);
    let byte = |address| -> u8 { memory.read_obj(GuestAddress(address)).unwrap() };
    let found = [BLOCK, held.start, held.end - 1, 2 * BLOCK, 3 * BLOCK].map(byte);
    assert_eq!(found, [0, 0, 0, 0, 0xaa]);
    let mut marked = changed(&memory);
    marked.retain(|page| *page >= BLOCK / 4096);
    assert_eq!(marked, pages(held));
}

#[test]
fn a_driver_that_reports_nothing_needs_no_queue_for_it() {
    let device = Balloon::new(&REPORTS, Discarder::default());
    assert_eq!(device.queues_needed(FEATURE_REPORTING), 3);
    assert_eq!(device.queues_needed(FEATURE_DEFLATE_ON_OOM), 2);
}

proptest! {
    /// Whatever is reported, no more becomes zero than what was named, and nobody panics.
    #[test]
    fn hostile_reports_reach_no_further(
        start in 0..MEMORY_MIB << 20,
        length in prop_oneof![Just(0), 0..1u32 << 24, any::<u32>()],
        round in any::<bool>(),
        mapped in any::<bool>(),
    ) {
        let size = if mapped { BLOCK } else { 4096 };
        let (start, length) = if round {
            let length = u64::from(length).next_multiple_of(size);
            (start / size * size, u32::try_from(length).unwrap_or(u32::MAX))
        } else {
            (start, length)
        };
        // Rings lie in the first block.
        let start = start.max(BLOCK);
        let memory = full_memory();
        let file = mapped.then(|| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![0xaa; MEMORY]).unwrap();
            map_file(&memory, GuestAddress(0), MEMORY, &file, 0).unwrap();
            file
        });
        serve(&memory, file.as_ref(), REPORTING, &[(start, length, WRITE)]);
        let end = start + u64::from(length);
        let named = |at: u64| (start..end).contains(&at);
        for at in (BLOCK..MEMORY_MIB << 20).step_by(PAGE_SIZE) {
            let byte: u8 = memory.read_obj(GuestAddress(at)).unwrap();
            prop_assert!(byte == 0xaa || (byte == 0 && named(at) && named(at + 4095)), "{at:#x}");
        }
    }
}
