use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{HugePages, allocate};

const MIB: u64 = 1 << 20;

fn memory(tracked: bool) -> GuestMemory {
    allocate(2, HugePages::None, tracked).unwrap()
}

fn fill(memory: &GuestMemory, page: u64, value: u8) {
    memory
        .write_slice(&[value; PAGE_SIZE], GuestAddress(page * PAGE_SIZE as u64))
        .unwrap();
}

fn contents(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; host_length(2 * MIB)];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

fn new_path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("memory")
}

#[test]
fn full_file_is_memory_with_holes_for_zeros() {
    let directory = tempfile::tempdir().unwrap();
    let path = new_path(&directory);
    let memory = memory(false);
    for page in [0, 1, 7, 300, 511] {
        fill(&memory, page, 1);
    }
    // Touched, and zero all the same.
    fill(&memory, 20, 0);
    for background in [Background::Zero, Background::Pager] {
        let written = write_full(&path, &memory, &background).unwrap();
        assert_eq!(written.bytes, 5 * PAGE_SIZE as u64);
        assert!(std::fs::read(&path).unwrap() == contents(&memory));
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 2 * MIB);
        assert!(metadata.blocks() * 512 <= 16 * PAGE_SIZE as u64);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn full_file_replaces_the_one_that_memory_is_mapped_from() {
    let directory = tempfile::tempdir().unwrap();
    let path = new_path(&directory);
    let first = memory(false);
    for page in [3, 4, 100] {
        fill(&first, page, 9);
    }
    write_full(&path, &first, &Background::Zero).unwrap();

    let file = File::open(&path).unwrap();
    let second = memory(false);
    let length = host_length(2 * MIB);
    crate::sys::memory::map_file(&second, GuestAddress(0), length, &file, 0).unwrap();
    fill(&second, 3, 0);
    fill(&second, 200, 5);
    let written = write_full(&path, &second, &Background::File(file)).unwrap();
    assert_eq!(written.bytes, 3 * PAGE_SIZE as u64);
    let mut expected = contents(&first);
    expected[3 * PAGE_SIZE..4 * PAGE_SIZE].fill(0);
    expected[200 * PAGE_SIZE..201 * PAGE_SIZE].fill(5);
    assert!(
        contents(&second) == expected,
        "the machine's own memory has changed"
    );
    assert!(std::fs::read(&path).unwrap() == expected);
}

#[test]
fn file_of_another_size_is_started_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = new_path(&directory);
    std::fs::write(&path, vec![1; 12345]).unwrap();
    let memory = memory(true);
    write_changed(&path, &memory).unwrap();
    assert!(std::fs::read(&path).unwrap() == vec![0; host_length(2 * MIB)]);
}

#[test]
fn page_that_became_zero_is_written_as_zeros() {
    let directory = tempfile::tempdir().unwrap();
    let path = new_path(&directory);
    let memory = memory(true);
    fill(&memory, 8, 0);
    let written = write_changed(&path, &memory).unwrap();
    assert_eq!(written.bytes, PAGE_SIZE as u64);
    let ranges = data_ranges(&File::open(&path).unwrap()).unwrap();
    assert!(
        ranges
            .iter()
            .any(|range| range.contains(&(8 * PAGE_SIZE as u64))),
        "{ranges:?}"
    );
}

#[test]
fn failure_keeps_what_has_changed() {
    let memory = memory(true);
    fill(&memory, 8, 1);
    assert!(write_changed("/nonexistent/memory".as_ref(), &memory).is_err());
    let directory = tempfile::tempdir().unwrap();
    let written = write_changed(&new_path(&directory), &memory).unwrap();
    assert_eq!(written.bytes, PAGE_SIZE as u64);
    forget_changes(&memory);
    assert_eq!(
        write_changed(&new_path(&directory), &memory).unwrap().bytes,
        0
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Many generations: what is merged is what memory is, zeros included.
    #[test]
    fn differences_merged_are_memory(
        generations in proptest::collection::vec(
            proptest::collection::vec((0u64..512, 0u8..3), 0..40), 1..6,
        ),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = new_path(&directory);
        let memory = memory(true);
        write_full(&path, &memory, &Background::Zero).unwrap();
        for generation in generations {
            let mut pages = BTreeSet::new();
            for (page, value) in generation {
                fill(&memory, page, value);
                pages.insert(page);
            }
            let written = write_changed(&path, &memory).unwrap();
            prop_assert_eq!(written.bytes, pages.len() as u64 * PAGE_SIZE as u64);
            forget_changes(&memory);
            prop_assert!(std::fs::read(&path).unwrap() == contents(&memory));
        }
    }

    /// Both kinds of log are one: a page is changed if either says so.
    #[test]
    fn logs_are_merged(
        own in proptest::collection::btree_set(0usize..512, 0..64),
        kvm in proptest::collection::btree_set(0usize..512, 0..64),
    ) {
        let memory = memory(true);
        for page in &own {
            fill(&memory, *page as u64, 1);
        }
        let mut log = vec![0u64; 512 / 64];
        for page in &kvm {
            log[page / 64] |= 1 << (page % 64);
        }
        let region = memory.iter().next().unwrap();
        merge_log(bitmap_of(region).unwrap(), &log);
        let found: BTreeSet<_> = (0..512)
            .filter(|page| GuestMemoryRegion::bitmap(region).dirty_at(page * PAGE_SIZE))
            .collect();
        prop_assert_eq!(found, own.union(&kvm).copied().collect());
    }

    #[test]
    fn runs_cover_everything_once(kinds in proptest::collection::vec(any::<bool>(), 0..50)) {
        let rebuilt: Vec<bool> = runs(kinds.len(), |index| kinds[index])
            .flat_map(|(kind, run)| run.map(move |_| kind))
            .collect();
        prop_assert_eq!(rebuilt, kinds);
    }
}
