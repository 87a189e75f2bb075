//! A header of a million extents in 4 GiB of memory: `header.lookup`, against a plain binary
//! search over as many sorted offsets; `header.build`, against writing the same numbers to
//! two vectors; `header.encode` and `header.decode`, against copying as many bytes.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wrenn_bench::Record;
use wrenn_core::snapshot::{BuildId, ExtentMap, FileSeal, Geometry, Head, Header, Row, Source};

use crate::support::{median, rounds};

const EXTENTS: u32 = 1_000_000;
const PAGE: u64 = 4096;
const MEMORY: u64 = 4 << 30;
const LOOKUPS: u32 = 1_000_000;
const BUILDS: u32 = 8;

pub(crate) fn measure() -> anyhow::Result<Vec<Record>> {
    let mut random = StdRng::seed_from_u64(7);
    let geometry = Geometry::new(MEMORY, PAGE)?;
    let parts: Vec<(u64, Source)> = (0..EXTENTS)
        .map(|number| {
            let place = match number % 5 {
                0 => Source::Zero,
                _ => Source::Build {
                    row: random.random_range(0..BUILDS),
                    offset: random.random_range(0..MEMORY / PAGE) * PAGE,
                },
            };
            (PAGE, place)
        })
        .collect();
    let map = ExtentMap::of_parts(geometry, parts.iter().copied())?;
    let extents = map.len();
    let header = Header::new(head(geometry), map)?;
    let starts: Vec<u64> = header
        .extents()
        .iter()
        .map(|extent| extent.offset)
        .collect();
    let offsets: Vec<u64> = (0..LOOKUPS)
        .map(|_| random.random_range(0..MEMORY))
        .collect();
    let bytes = header.encode();
    eprintln!("{extents} extents, a header of {} bytes", bytes.len());
    ensure!(
        Header::decode(&bytes)? == header,
        "it is not read as it was written"
    );

    let mut samples = <[Vec<f64>; 4]>::default();
    let mut floors = <[Vec<f64>; 4]>::default();
    let copy = || drop(black_box(bytes.clone()));
    for _ in 0..rounds(20) {
        samples[0].push(time(|| {
            for offset in &offsets {
                black_box(header.extents().lookup(*offset));
            }
        }));
        floors[0].push(time(|| {
            for offset in &offsets {
                black_box(starts.partition_point(|start| start <= offset));
            }
        }));
        let parts = parts.iter().copied();
        samples[1].push(time(|| {
            drop(black_box(ExtentMap::of_parts(geometry, parts)))
        }));
        floors[1].push(time(|| drop(black_box((starts.clone(), starts.clone())))));
        samples[2].push(time(|| drop(black_box(header.encode()))));
        floors[2].push(time(copy));
        samples[3].push(time(|| drop(black_box(Header::decode(&bytes)))));
        floors[3].push(time(copy));
    }
    // Milliseconds for all lookups are nanoseconds for one.
    let nanoseconds = 1e6 / f64::from(LOOKUPS);
    for times in [&mut samples[0], &mut floors[0]] {
        times.iter_mut().for_each(|time| *time *= nanoseconds);
    }
    let names = [
        ("header.lookup", "ns", "binary search over sorted u64"),
        ("header.build", "ms", "copying two arrays of as many u64"),
        ("header.encode", "ms", "copying as many bytes"),
        ("header.decode", "ms", "copying as many bytes"),
    ];
    names
        .into_iter()
        .zip(samples.into_iter().zip(floors))
        .map(|((name, unit, floor_name), (samples, floor))| {
            let record = Record::of(name, unit, samples).context("no rounds were run")?;
            Ok(record.against(floor_name, median(floor)))
        })
        .collect()
}

/// How long something takes, in milliseconds.
fn time(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1e3
}

fn head(geometry: Geometry) -> Head {
    let seal = FileSeal {
        length: 0,
        checksum: 0,
    };
    Head {
        geometry,
        generation: BUILDS - 1,
        vmstate: seal,
        manifest: seal,
        rows: (0..BUILDS)
            .map(|_| Row {
                id: BuildId::random(),
                memory_length: MEMORY,
                chunk_size: 64 << 10,
                sums_checksum: 0,
            })
            .collect(),
    }
}
