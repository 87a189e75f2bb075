//! Tests of the store's layout, against a model of what the kernel does.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Writes a store as the kernel does: chunks are handed out in order, areas are jumped
/// over, and the area after a full one is wiped.
struct Kernel {
    file: File,
    chunk: ChunkSize,
    next_free: u64,
    pairs: u64,
}

impl Kernel {
    fn new(shape: StoreShape) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(shape.file_bytes()).unwrap();
        let mut header = Vec::new();
        for word in [
            MAGIC,
            1,
            VERSION,
            u32::try_from(shape.chunk.sectors()).unwrap(),
        ] {
            header.extend(word.to_le_bytes());
        }
        file.write_all_at(&header, 0).unwrap();
        Self {
            file,
            chunk: shape.chunk,
            next_free: 2,
            pairs: 0,
        }
    }

    /// Copies a chunk of the disk; `false` if the store is full.
    fn write(&mut self, of_disk: u64) -> bool {
        let length = self.file.metadata().unwrap().len();
        if length < (self.next_free + 1) * self.chunk.bytes() {
            return false;
        }
        self.pair(of_disk, self.next_free);
        self.next_free += 1;
        if self.next_free % (self.chunk.pairs() + 1) == 1 {
            self.next_free += 1;
        }
        true
    }

    fn pair(&mut self, of_disk: u64, of_store: u64) {
        let (area, index) = (
            self.pairs / self.chunk.pairs(),
            self.pairs % self.chunk.pairs(),
        );
        let at = (1 + area * (self.chunk.pairs() + 1)) * self.chunk.bytes() + index * PAIR_LEN;
        let mut pair = of_disk.to_le_bytes().to_vec();
        pair.extend(of_store.to_le_bytes());
        self.file.write_all_at(&pair, at).unwrap();
        self.pairs += 1;
        if self.pairs.is_multiple_of(self.chunk.pairs()) {
            let next = 1 + (area + 1) * (self.chunk.pairs() + 1);
            let length = self.file.metadata().unwrap().len();
            assert!(
                (next + 1) * self.chunk.bytes() <= length,
                "the kernel would write beyond the store's end, and make it invalid"
            );
        }
    }
}

fn shape(capacity_chunks: u64) -> StoreShape {
    StoreShape {
        capacity_bytes: capacity_chunks * 4096,
        chunk: ChunkSize::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_store_takes_what_it_promises_and_no_more(capacity in 1_u64..1100) {
        let mut kernel = Kernel::new(shape(capacity));
        for chunk in 0..capacity {
            prop_assert!(kernel.write(chunk), "full at {} of {}", chunk, capacity);
        }
        prop_assert!(!kernel.write(capacity));
        let contents = read(&kernel.file, capacity * 4096).unwrap();
        prop_assert_eq!(contents.written, (0..capacity).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_written_is_found(chunks in prop::collection::btree_set(0_u64..5000, 0..600)) {
        let mut kernel = Kernel::new(shape(5000));
        for chunk in chunks.iter().rev() {
            prop_assert!(kernel.write(*chunk));
        }
        let contents = read(&kernel.file, 5000 * 4096).unwrap();
        prop_assert_eq!(contents.written.into_iter().collect::<BTreeSet<_>>(), chunks);
    }

    #[test]
    fn nonsense_is_refused_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        prop_assert!(matches!(read(&file, 1 << 20), Err(ReadStoreError::Damaged(_))));
        // Behind a good header, too.
        let kernel = Kernel::new(shape(10));
        kernel.file.write_all_at(&bytes, 4096).unwrap();
        drop(read(&kernel.file, 10 * 4096));
    }

    #[test]
    fn chunks_are_powers_of_two(bytes in any::<u32>()) {
        let expected = bytes.is_power_of_two() && (4096..=1 << 20).contains(&bytes);
        prop_assert_eq!(ChunkSize::from_bytes(bytes).is_some(), expected);
    }
}

#[test]
fn the_length_has_room_for_one_more_area_than_is_full() {
    // An area of 4 KiB lists 256 chunks.
    for (data, chunks) in [(1, 3), (255, 257), (256, 259), (257, 260), (512, 516)] {
        assert_eq!(
            shape(data).file_bytes(),
            chunks * 4096,
            "{data} chunks of data"
        );
    }
    assert!(can_fill(
        shape(255).file_bytes(),
        256 * 4096,
        ChunkSize::default()
    ));
    assert!(!can_fill(
        shape(256).file_bytes(),
        256 * 4096,
        ChunkSize::default()
    ));
}

#[test]
fn damage_is_named() {
    let damaged = |at: u64, bytes: &[u8]| {
        let mut kernel = Kernel::new(shape(20));
        assert!(kernel.write(3) && kernel.write(4));
        kernel.file.write_all_at(bytes, at).unwrap();
        damage_of(&kernel.file)
    };
    assert_eq!(damaged(0, b"snap"), StoreDamage::NoMagic);
    assert_eq!(damaged(0, &[0; 16]), StoreDamage::NoMagic);
    assert_eq!(damaged(4, &[0; 4]), StoreDamage::Invalidated);
    assert_eq!(damaged(8, &[2, 0, 0, 0]), StoreDamage::Version(2));
    assert_eq!(damaged(12, &[7, 0, 0, 0]), StoreDamage::Chunk(7));
    for (what, at, value) in [
        ("twice the same chunk of the disk", 4096 + 16, 3_u64),
        ("a chunk beyond the disk", 4096, 20),
        ("twice the same place", 4096 + 8, 3),
        ("the place of an area", 4096 + 8, 1),
        ("a place beyond the file", 4096 + 8, 1000),
    ] {
        let damage = damaged(at, &value.to_le_bytes());
        assert!(
            matches!(damage, StoreDamage::Entry { .. }),
            "{what}: {damage}"
        );
    }
    let kernel = Kernel::new(shape(20));
    kernel.file.set_len(5000).unwrap();
    assert_eq!(damage_of(&kernel.file), StoreDamage::CutShort(5000));
}

fn damage_of(store: &File) -> StoreDamage {
    match read(store, 20 * 4096) {
        Err(ReadStoreError::Damaged(damage)) => damage,
        other => panic!("not damaged: {other:?}"),
    }
}
