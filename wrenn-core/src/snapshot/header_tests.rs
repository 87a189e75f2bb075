use proptest::prelude::*;

use super::*;

const PAGES: u32 = 64;

fn row(id: &BuildId) -> Row {
    Row {
        id: id.clone(),
        memory_length: u64::from(PAGES) * 4096,
        chunk_size: 64 << 10,
        sums_checksum: 0,
    }
}

fn seals(id: &BuildId) -> Seals {
    let seal = FileSeal {
        length: 0,
        checksum: 0,
    };
    Seals {
        own: row(id),
        vmstate: seal,
        manifest: seal,
    }
}

fn geometry() -> Geometry {
    Geometry::new(u64::from(PAGES) * 4096, 4096).unwrap()
}

/// Which build each page comes from; all keep their offset.
fn owners(header: &Header) -> Vec<Option<BuildId>> {
    let mut owners = Vec::new();
    for (start, pages, target) in header.extents.pages() {
        let owner = target.place().map(|(row, page)| {
            assert_eq!(page, start);
            header.head.rows[row as usize].id.clone()
        });
        owners.extend(std::iter::repeat_n(owner, pages as usize));
    }
    owners
}

/// Sorted runs that do not touch each other's pages.
fn runs() -> impl Strategy<Value = Vec<Run>> {
    proptest::collection::vec((0..6_u32, 1..6_u32, any::<bool>()), 0..12).prop_map(|parts| {
        let mut next = 0;
        let mut runs = Vec::new();
        for (gap, pages, zero) in parts {
            let page = next + gap;
            if page + pages > PAGES {
                break;
            }
            runs.push(Run { page, pages, zero });
            next = page + pages;
        }
        runs
    })
}

#[test]
fn builds_that_nothing_comes_from_leave_the_table() {
    let ids = [BuildId::random(), BuildId::random(), BuildId::random()];
    let all = [Run {
        page: 0,
        pages: PAGES,
        zero: false,
    }];
    let first = Header::full(geometry(), &all, seals(&ids[0]));
    let part = [Run { pages: 3, ..all[0] }];
    let second = Header::overlay(&first, &part, seals(&ids[1]));
    assert_eq!(second.head.needs().collect::<Vec<_>>(), [&ids[0]]);
    let third = Header::overlay(&second, &all, seals(&ids[2]));
    assert_eq!(third.head.needs().count(), 0);
    assert_eq!((third.head.generation, third.head.rows.len()), (2, 1));
}

proptest! {
    #[test]
    fn an_overlay_changes_what_it_names_and_nothing_else(layers in proptest::collection::vec(runs(), 1..6)) {
        let mut wanted: Vec<Option<BuildId>> = vec![None; PAGES as usize];
        let mut header: Option<Header> = None;
        for runs in &layers {
            let id = BuildId::random();
            for run in runs {
                let range = run.page as usize..(run.page + run.pages) as usize;
                wanted[range].fill((!run.zero).then(|| id.clone()));
            }
            header = Some(match header {
                None => Header::full(geometry(), runs, seals(&id)),
                Some(parent) => Header::overlay(&parent, runs, seals(&id)),
            });
        }
        let header = header.unwrap();
        prop_assert_eq!(owners(&header), wanted);
        prop_assert_eq!(header.head.generation as usize, layers.len() - 1);
        let unused = header.bytes_by_row().iter().skip(1).filter(|bytes| **bytes == 0).count();
        prop_assert_eq!(unused, 0);
    }
}
