use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::snapshot::extent::tests::runs;

fn id(letter: char) -> BuildId {
    format!("bd{}", letter.to_string().repeat(20))
        .parse()
        .unwrap()
}

fn row(letter: char, pages: u64) -> Row {
    Row {
        id: id(letter),
        memory_length: pages * 4096,
        chunk_size: 64 << 10,
        sums_checksum: 0x1122_3344_5566_7788,
    }
}

/// Rows of 10,000 pages each, and any extents.
fn header(runs: &[(u32, Target)], pages: u32) -> Header {
    let geometry = Geometry::new(u64::from(pages) * 4096, 4096).unwrap();
    let mut builder = ExtentMapBuilder::new(geometry, runs.len());
    for (pages, target) in runs {
        builder.push(*pages, *target);
    }
    Header {
        head: Head {
            geometry,
            generation: 2,
            vmstate: FileSeal {
                length: 0x1234,
                checksum: 0x0102_0304_0506_0708,
            },
            manifest: FileSeal {
                length: 0x56,
                checksum: 0xf1f2_f3f4_f5f6_f7f8,
            },
            rows: vec![row('a', 10_000), row('b', 10_000), row('c', 10_000)],
        },
        extents: builder.finish(),
    }
}

fn small() -> Header {
    header(
        &[
            (2, Target::build(0, 0)),
            (1, Target::ZERO),
            (3, Target::build(2, 7)),
        ],
        8,
    )
}

/// Writes new checksums, as somebody would who wants nonsense to be believed.
fn seal(bytes: &mut [u8]) {
    let (rows, _) = fixed_part(bytes).unwrap();
    let head = head_length(rows) - 8;
    let sum = checksum::of(&bytes[..head]);
    bytes[head..head + 8].copy_from_slice(&sum.to_le_bytes());
    let end = bytes.len() - 8;
    let sum = checksum::of(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
}

/// `WRENN_BLESS=1 cargo test -p wrenn-core the_bytes_are_as_they_were` writes the file anew.
#[test]
fn the_bytes_are_as_they_were() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/snapshot/golden/header-1.bin");
    let bytes = small().encode();
    if std::env::var_os("WRENN_BLESS").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(&golden, &bytes).unwrap();
    }
    let wanted = std::fs::read(&golden).unwrap();
    assert_eq!(bytes, wanted, "the layout changed: give it a new number");
    assert_eq!(Header::decode(&wanted).unwrap(), small());
}

#[test]
fn every_flipped_bit_is_refused() {
    let bytes = small().encode();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&flipped).is_err(), "bit {bit} was flipped unnoticed");
        let in_head = bit / 8 < head_length(3);
        assert_eq!(decode_head(&flipped).is_err(), in_head, "bit {bit}");
    }
}

#[test]
fn every_other_length_is_refused() {
    let mut bytes = small().encode();
    for length in 0..bytes.len() {
        assert!(
            decode(&bytes[..length]).is_err(),
            "{length} bytes were taken"
        );
        assert_eq!(
            decode_head(&bytes[..length]).is_ok(),
            length >= head_length(3)
        );
    }
    bytes.push(0);
    assert!(matches!(
        decode(&bytes),
        Err(DecodeHeaderError::Length { .. })
    ));
}

#[test]
fn a_later_layout_says_so() {
    let mut bytes = small().encode();
    bytes[8] = 2;
    assert_eq!(decode(&bytes), Err(DecodeHeaderError::Layout(2)));
}

#[test]
fn nonsense_with_a_fitting_checksum_is_refused() {
    let extents = head_length(3);
    let cases: [(usize, u32, &str); 9] = [
        (12, 5000, "page size"),
        (36, 1, "empty field"),
        (FIXED_LENGTH + 40, 3, "chunk size"),
        (FIXED_LENGTH + 44, 1, "empty field of a row"),
        (extents, 1, "a gap at the start"),
        (extents + 12, 0, "an extent without length"),
        (extents + 12 + 8, 4, "zeros that lie somewhere"),
        (extents + 24 + 4, 4, "a row that is not there"),
        (extents + 24 + 8, 9_998, "pages past the end of a file"),
    ];
    for (at, value, what) in cases {
        let mut bytes = small().encode();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        seal(&mut bytes);
        assert!(decode(&bytes).is_err(), "{what} was taken");
    }
    let mut twice = small();
    twice.head.rows[2].id = id('a');
    assert_eq!(
        decode(&twice.encode()),
        Err(DecodeHeaderError::Field("table of builds"))
    );
}

proptest! {
    #[test]
    fn a_header_is_read_as_it_was_written(runs in runs(), spare in 1..50_u32) {
        let pages = runs.iter().map(|run| run.0).sum::<u32>() + spare;
        let header = header(&runs, pages);
        let bytes = header.encode();
        prop_assert_eq!(decode_head(&bytes).unwrap(), header.head.clone());
        prop_assert_eq!(Header::decode(&bytes).unwrap(), header);
    }

    /// Whatever it holds, it is refused or read, and what is read can be used.
    #[test]
    fn any_bytes_are_safe(at in 8..500_usize, noise in proptest::collection::vec(any::<u8>(), 1..40)) {
        let mut bytes = small().encode();
        let at = at % bytes.len();
        for (byte, noise) in bytes[at..].iter_mut().zip(noise) {
            *byte = noise;
        }
        let whole = |(rows, extents)| head_length(rows) + extents * EXTENT_LENGTH + 8;
        if fixed_part(&bytes).map(whole) == Ok(bytes.len()) {
            seal(&mut bytes);
        }
        if let Ok(header) = decode(&bytes) {
            let size = header.head.geometry.memory_size();
            prop_assert_eq!(header.extents.iter().map(|extent| extent.length).sum::<u64>(), size);
        }
    }
}
