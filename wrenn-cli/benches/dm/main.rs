//! Disks of sandboxes: making one (`dm.create`), making it again from its store
//! (`dm.restore`) and giving it back (`dm.remove`), each against the bare system calls that
//! do the same to the kernel; and making one against copying its image (`dm.create_or_copy`).
//!
//! Needs root and a device mapper, and no VM. Both sides have the image's loop device
//! already, as on a host that runs more than one sandbox of a template.

mod raw;
mod sys;

#[allow(dead_code, reason = "this benchmark needs no VMs")]
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use wrenn_bench::Record;
use wrenn_core::devicemapper::{DeviceMapper, StoreShape};
use wrenn_core::template::Template;
use wrenn_core::{RootDirectory, SandboxId};

use support::{median, report, rounds};

const RAW: &str = "bare ioctls";
const COPY: &str = "copy of the image";
/// What is written to each disk, so that there is something to restore.
const WRITTEN: usize = 1 << 20;

/// How long each step took, in milliseconds.
#[derive(Default)]
struct Samples {
    create: Vec<f64>,
    restore: Vec<f64>,
    remove: Vec<f64>,
}

impl Samples {
    fn add(&mut self, [create, restore, remove]: [Duration; 3]) {
        self.create.push(milliseconds(create));
        self.restore.push(milliseconds(restore));
        self.remove.push(milliseconds(remove));
    }
}

fn main() -> anyhow::Result<()> {
    let root = std::env::var_os("AGENT_FILES_ROOTDIR")
        .map_or_else(RootDirectory::default, RootDirectory::new);
    let directory = root.path().join(format!("bench-{}", SandboxId::random()));
    fs::create_dir(&directory).context("cannot make a directory")?;
    let measured = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(measure(&root, &directory)));
    fs::remove_dir_all(&directory).context("cannot remove the benchmark's directory")?;
    report(&measured?)
}

async fn measure(root: &RootDirectory, directory: &Path) -> anyhow::Result<Vec<Record>> {
    let image = Template::open(root, "minimal")?.rootfs;
    let mapper = DeviceMapper::open(root).await?;
    let shape = StoreShape::for_disk(fs::metadata(&image)?.len());
    let store = directory.join("kept");
    // Holds the image's loop device.
    let kept = mapper
        .create(&SandboxId::random(), &image, &store, shape)
        .await?;
    let bare = raw::Bare::open(&image)?;
    let (mut ours, mut floor, mut copies) = (Samples::default(), Samples::default(), Vec::new());
    for round in 0..rounds(30) {
        ours.add(engine(&mapper, &image, shape, directory).await?);
        let store = directory.join("raw");
        floor.add(bare.cycle(&store, shape.file_bytes())?);
        fs::remove_file(&store)?;
        let copy = directory.join("copy");
        let begun = Instant::now();
        copy_data(&image, &copy)?;
        copies.push(milliseconds(begun.elapsed()));
        fs::remove_file(&copy)?;
        eprintln!(
            "round {round}: create {:.2} ms, restore {:.2} ms, remove {:.2} ms; \
             {RAW} {:.2}, {:.2}, {:.2} ms; {COPY} {:.1} ms",
            ours.create[round],
            ours.restore[round],
            ours.remove[round],
            floor.create[round],
            floor.restore[round],
            floor.remove[round],
            copies[round]
        );
    }
    drop(bare);
    kept.remove().await?;
    mapper.settled().await;
    let left = mapper.leftovers().await?;
    ensure!(left.is_empty(), "disks are left: {left:?}");
    Ok(vec![
        record("dm.create", ours.create.clone(), RAW, floor.create)?,
        record("dm.restore", ours.restore, RAW, floor.restore)?,
        record("dm.remove", ours.remove, RAW, floor.remove)?,
        record("dm.create_or_copy", ours.create, COPY, copies)?,
    ])
}

fn record(
    name: &str,
    samples: Vec<f64>,
    baseline: &str,
    floor: Vec<f64>,
) -> anyhow::Result<Record> {
    let record = Record::of(name, "ms", samples).context("no rounds were run")?;
    Ok(record.against(baseline, median(floor)))
}

/// Makes a disk, makes it again from what was written, and gives it back.
async fn engine(
    mapper: &DeviceMapper,
    image: &Path,
    shape: StoreShape,
    directory: &Path,
) -> anyhow::Result<[Duration; 3]> {
    let (id, store) = (SandboxId::random(), directory.join("ours"));
    let begun = Instant::now();
    let disk = mapper.create(&id, image, &store, shape).await?;
    let create = begun.elapsed();
    write(disk.path().to_owned())?;
    disk.remove().await?;
    let begun = Instant::now();
    let disk = mapper.restore(&id, image, &store).await?;
    let restore = begun.elapsed();
    let begun = Instant::now();
    disk.remove().await?;
    let remove = begun.elapsed();
    fs::remove_file(&store)?;
    Ok([create, restore, remove])
}

/// Writes to a disk as a guest does.
fn write(disk: PathBuf) -> anyhow::Result<()> {
    let disk = File::options()
        .write(true)
        .open(&disk)
        .with_context(|| format!("cannot open {}", disk.display()))?;
    disk.write_all_at(&vec![7; WRITTEN], 0)?;
    Ok(disk.sync_all()?)
}

/// Copies what a file holds and leaves its holes. The bytes pass through here, as a copy that
/// shares blocks with its original would not be one.
fn copy_data(from: &Path, to: &Path) -> anyhow::Result<()> {
    let (source, target) = (File::open(from)?, File::create_new(to)?);
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        at = match seek(&source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(&source, SeekFrom::Hole(at))?;
        while at < end {
            let chunk =
                usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            source.read_exact_at(&mut buffer[..chunk], at)?;
            target.write_all_at(&buffer[..chunk], at)?;
            at += chunk as u64;
        }
    }
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
