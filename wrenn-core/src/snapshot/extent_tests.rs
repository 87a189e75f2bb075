use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;

fn geometry(pages: u32) -> Geometry {
    Geometry::new(u64::from(pages) * PAGE, PAGE).unwrap()
}

fn build(geometry: Geometry, runs: &[(u32, Target)]) -> ExtentMap {
    let mut builder = ExtentMapBuilder::new(geometry, runs.len());
    for (pages, target) in runs {
        builder.push(*pages, *target);
    }
    builder.finish()
}

#[test]
fn neighbours_that_go_on_are_one_extent() {
    let map = build(
        geometry(20),
        &[
            (2, Target::build(0, 0)),
            (3, Target::build(0, 2)),
            (1, Target::build(0, 9)),
            (2, Target::ZERO),
            (2, Target::ZERO),
            (1, Target::build(1, 10)),
        ],
    );
    let found: Vec<_> = map.pages().collect();
    assert_eq!(
        found,
        [
            (0, 5, Target::build(0, 0)),
            (5, 1, Target::build(0, 9)),
            (6, 4, Target::ZERO),
            (10, 1, Target::build(1, 10)),
            (11, 9, Target::ZERO),
        ]
    );
}

#[test]
fn a_lookup_past_the_end_finds_nothing() {
    let map = build(geometry(3), &[]);
    assert_eq!(
        map.lookup(3 * PAGE - 1).map(|extent| extent.length),
        Some(3 * PAGE)
    );
    assert_eq!(map.lookup(3 * PAGE), None);
    assert_eq!(map.lookup(u64::MAX), None);
    assert_eq!(map.extents_in(3 * PAGE..u64::MAX).count(), 0);
    let backwards = Range { start: 5, end: 5 };
    assert_eq!(map.extents_in(backwards).count(), 0);
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    for (memory, page) in [
        (0, PAGE),
        (PAGE, 0),
        (PAGE + 1, PAGE),
        (PAGE, 5000),
        (1 << 40, 512),
        (u64::MAX - PAGE + 1, PAGE),
    ] {
        assert!(Geometry::new(memory, page).is_err(), "{memory} {page}");
    }
    let huge = Geometry::new(4 << 30, 2 << 20).unwrap();
    assert_eq!((huge.page_size(), huge.memory_size()), (2 << 20, 4 << 30));
}

#[test]
fn parts_that_make_no_sense_are_refused() {
    let build = |row, offset| Source::Build { row, offset };
    let good = [(2 * PAGE, build(1, 8 * PAGE)), (PAGE, Source::Zero)];
    let map = ExtentMap::of_parts(geometry(4), good).unwrap();
    let first = map.lookup(PAGE).unwrap();
    assert_eq!((first.length, first.source), good[0]);
    assert_eq!(map.len(), 2);
    for bad in [
        (5 * PAGE, Source::Zero),
        (PAGE + 1, Source::Zero),
        (PAGE, build(0, 1)),
        (PAGE, build(0, u64::MAX - PAGE + 1)),
        (PAGE, build(u32::MAX, 0)),
    ] {
        assert!(ExtentMap::of_parts(geometry(4), [bad]).is_err(), "{bad:?}");
    }
}

/// A search that walks the extents would take hours for these, and be noticed.
#[test]
fn a_million_lookups_among_a_million_extents_end() {
    const EXTENTS: u32 = 1_000_000;
    // Half of them close together, half far apart: the coarse index alone is no help.
    let parts = (0..EXTENTS).map(|number| {
        let pages = if number < EXTENTS / 2 { 1 } else { 64 };
        let offset = u64::from(number % 1000) * 128 * PAGE;
        (
            pages * PAGE,
            Source::Build {
                row: number % 7,
                offset,
            },
        )
    });
    let map = ExtentMap::of_parts(geometry(33_000_000), parts).unwrap();
    assert_eq!(map.len(), EXTENTS as usize + 1);
    let size = map.geometry().memory_size();
    let mut offset = 1_u64;
    for _ in 0..1_000_000 {
        offset = offset
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1)
            % size;
        let extent = map.lookup(offset).unwrap();
        assert!((extent.offset..extent.offset + extent.length).contains(&offset));
    }
}

/// Runs that cover up to so many pages, small and large ones mixed.
pub(in crate::snapshot) fn runs() -> impl Strategy<Value = Vec<(u32, Target)>> {
    let target = prop_oneof![
        1 => Just(Target::ZERO),
        3 => (0..3_u32, 0..5000_u32).prop_map(|(row, page)| Target::build(row, page)),
    ];
    let pages = prop_oneof![4 => 1..4_u32, 1 => 1..600_u32];
    proptest::collection::vec((pages, target), 0..200)
}

proptest! {
    #[test]
    fn every_page_is_found_where_it_was_put(runs in runs(), spare in 1..50_u32) {
        let pages = runs.iter().map(|run| run.0).sum::<u32>() + spare;
        let map = build(geometry(pages), &runs);
        let mut wanted: Vec<Target> = runs
            .iter()
            .flat_map(|(pages, target)| (0..*pages).map(|page| target.after(page)))
            .collect();
        wanted.resize(pages as usize, Target::ZERO);
        for (page, target) in (0_u64..).zip(&wanted) {
            let byte = page * PAGE + page % PAGE;
            let extent = map.lookup(byte).unwrap();
            let there = extent.clip(&(byte..byte + 1));
            let expected = match target.place() {
                None => Source::Zero,
                Some((row, page_there)) => Source::Build {
                    row,
                    offset: u64::from(page_there) * PAGE + page % PAGE,
                },
            };
            prop_assert_eq!(there, Extent { offset: byte, length: 1, source: expected });
        }
    }

    #[test]
    fn the_extents_of_a_range_cover_it_exactly(runs in runs(), from in 0..40_000_000_u64, length in 1..4_000_000_u64) {
        let map = build(geometry(10_000), &runs);
        let size = map.geometry().memory_size();
        let mut next = from;
        for extent in map.extents_in(from..from + length) {
            prop_assert_eq!(extent.offset, next);
            prop_assert!(extent.length > 0);
            let whole = map.lookup(extent.offset).unwrap();
            prop_assert_eq!(whole.clip(&(extent.offset..extent.offset + extent.length)), extent);
            next += extent.length;
        }
        prop_assert_eq!(next, (from + length).min(size).max(from));
    }
}
