use std::io::Write;

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
fn serve(memory: &GuestMemory, discard: Discard, queue: usize, buffers: &[(u64, u32, u16)]) {
    let mut device = Balloon::new(&REPORTS, discard);
    let mut drivers = [0, 1, 2].map(|index| TestDriver::new(memory, RINGS + index * 0x4000));
    let mut queues = [0, 1, 2].map(|index| drivers[index].queue(index));
    drivers[queue].request(buffers);
    let mut active = Active {
        queues: &mut queues,
        memory,
        interrupt: &Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
        features: FEATURE_REPORTING,
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
        let device = Balloon::new(config, Discard::Advise);
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

#[test]
fn reported_blocks_are_zero_and_count_as_changed() {
    let memory = full_memory();
    serve(
        &memory,
        Discard::Advise,
        REPORTING,
        &[(BLOCK, BLOCK_LENGTH, WRITE), (3 * BLOCK, 4096, WRITE)],
    );
    let region = memory.iter().next().unwrap();
    let changed = bitmap_of(region).unwrap();
    let page = |address: u64| usize::try_from(address).unwrap() / PAGE_SIZE;
    assert!(changed.is_bit_set(page(BLOCK)) && changed.is_bit_set(page(2 * BLOCK) - 1));
    assert!(!changed.is_bit_set(page(BLOCK) - 1) && !changed.is_bit_set(page(2 * BLOCK)));
    assert!(changed.is_bit_set(page(3 * BLOCK)) && !changed.is_bit_set(page(3 * BLOCK) + 1));
    let byte = |address| -> u8 { memory.read_obj(GuestAddress(address)).unwrap() };
    assert_eq!((byte(3 * BLOCK), byte(3 * BLOCK + 4096)), (0, 0xaa));
    memory.write_obj(0xaau8, GuestAddress(3 * BLOCK)).unwrap();
    assert_eq!(zero_blocks(&memory), [false, true, false, false]);
    // The guest uses it again.
    memory.write_obj(7u8, GuestAddress(BLOCK)).unwrap();
    assert_eq!(byte(BLOCK), 7);
}

/// What is not reported, by the right queue and as whole pages of memory, stays.
#[test]
fn everything_else_stays() {
    let memory = full_memory();
    for queue in [0, 1] {
        serve(
            &memory,
            Discard::Advise,
            queue,
            &[(BLOCK, BLOCK_LENGTH, WRITE)],
        );
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
        serve(&memory, Discard::Advise, REPORTING, &[odd]);
    }
    assert_eq!(zero_blocks(&memory), [false; 4]);
}

/// A file behind memory does not show again.
#[test]
fn blocks_of_a_mapped_file_are_replaced() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0xaa; MEMORY]).unwrap();
    let memory = allocate(MEMORY_MIB, HugePages::None, true).unwrap();
    map_file(&memory, GuestAddress(0), MEMORY, &file, 0).unwrap();
    memory.write_obj(0xaau8, GuestAddress(BLOCK)).unwrap();
    let reports = [
        (BLOCK, BLOCK_LENGTH, WRITE),
        // Too little to be worth a mapping.
        (2 * BLOCK, 4096, WRITE),
        (3 * BLOCK, BLOCK_LENGTH, WRITE),
    ];
    serve(&memory, Discard::Replace, REPORTING, &reports);
    assert_eq!(zero_blocks(&memory), [false, true, false, true]);
}

proptest! {
    /// Whatever is reported, no more becomes zero than what was named, and nobody panics.
    #[test]
    fn hostile_reports_reach_no_further(
        start in 0..MEMORY_MIB << 20,
        length in prop_oneof![Just(0), 0..1u32 << 24, any::<u32>()],
        round in any::<bool>(),
        how in prop_oneof![Just(Discard::Advise), Just(Discard::Replace)],
    ) {
        let size = if how == Discard::Advise { 4096 } else { BLOCK };
        let (start, length) = if round {
            let length = u64::from(length).next_multiple_of(size);
            (start / size * size, u32::try_from(length).unwrap_or(u32::MAX))
        } else {
            (start, length)
        };
        // Rings lie in the first block.
        let start = start.max(BLOCK);
        let memory = full_memory();
        serve(&memory, how, REPORTING, &[(start, length, WRITE)]);
        let end = start + u64::from(length);
        let named = |at: u64| (start..end).contains(&at);
        for at in (BLOCK..MEMORY_MIB << 20).step_by(PAGE_SIZE) {
            let byte: u8 = memory.read_obj(GuestAddress(at)).unwrap();
            prop_assert!(byte == 0xaa || (byte == 0 && named(at) && named(at + 4095)), "{at:#x}");
        }
    }
}
