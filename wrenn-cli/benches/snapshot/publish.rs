//! `snapshot.publish`: making a build durable whose dirty pages a VMM has just written,
//! 64 MiB of 1 GiB, in runs of 16 pages. Against the sync that nobody can do without.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use wrenn_bench::Record;
use wrenn_core::RootDirectory;
use wrenn_core::snapshot::{BuildDetails, BuildStore, Geometry, MemoryFile};

use crate::support::{median, rounds};

const MEMORY: u64 = 1 << 30;
const RUN: usize = 64 << 10;
const STEP: u64 = 1 << 20;

pub(crate) fn measure() -> anyhow::Result<Vec<Record>> {
    let directory = tempfile::tempdir()?;
    let store = BuildStore::open(&RootDirectory::new(directory.path()))?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let first = store.begin()?;
    write_dirty(&first.memory(), 0)?;
    std::fs::write(first.vmstate(), "state")?;
    let full = MemoryFile::Full(Geometry::new(MEMORY, 4096)?);
    let parent = first.publish(full, BuildDetails::default())?;
    for round in 1..=rounds(20) {
        let writer = store.begin()?;
        write_dirty(&writer.memory(), u8::try_from(round % 256)?)?;
        std::fs::write(writer.vmstate(), "state")?;
        let begun = Instant::now();
        let published = writer.publish(MemoryFile::Diff(&parent), BuildDetails::default())?;
        ours.push(begun.elapsed().as_secs_f64() * 1e3);
        drop(published);

        let bare = directory.path().join("bare");
        let file = write_dirty(&bare, u8::try_from(round % 256)?)?;
        let begun = Instant::now();
        file.sync_all()?;
        floor.push(begun.elapsed().as_secs_f64() * 1e3);
        std::fs::remove_file(&bare)?;
        let id = parent.id().clone();
        store.gc(|| {
            let holder = wrenn_core::snapshot::Holder::Process;
            Ok(vec![wrenn_core::snapshot::Reference {
                build: id.clone(),
                holder,
            }])
        })?;
    }
    let record = Record::of("snapshot.publish", "ms", ours).context("no rounds were run")?;
    Ok(vec![
        record.against("fsync of the dirty pages", median(floor)),
    ])
}

fn write_dirty(path: &Path, value: u8) -> anyhow::Result<File> {
    let file = File::create(path)?;
    file.set_len(MEMORY)?;
    let run = vec![value | 1; RUN];
    for start in (0..MEMORY).step_by(usize::try_from(STEP)?) {
        file.write_all_at(&run, start)?;
    }
    Ok(file)
}
