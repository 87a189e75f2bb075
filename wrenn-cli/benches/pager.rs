//! The pager, natively and without a VM: a stand-in for a VMM touches all of its memory.
//!
//! `pager.copy.*` is how fast all pages are brought, against a bare loop of `UFFDIO_COPY`
//! over the same memory that nobody waits for; `pager.copy.cpu` is the same for each second
//! of processor time, ours and the toucher's, which holds on a busy host too. `over_plain`
//! is against a handler on one thread that brings one page for each fault, `over_file`
//! against a private mapping of the file, which needs no pager: what a one-file snapshot
//! can have instead. `pager.prefetch.faults` are the faults of a VM whose working set is
//! known, from the moment on at which it begins, against those of the first resume.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::time::{ClockId, clock_gettime};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngCore, SeedableRng};
use wrenn_bench::Record;
use wrenn_core::uffd::stand_in::{GuestMemory, MemoryFile, PrivateMemory};
use wrenn_core::uffd::{
    MemorySource, Outcome, PAGE_SIZE, Pager, PagerConfig, Report, WorkingSetFile,
};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 128 << 10;
/// Working set of the prefetch benchmark: these many pages, far from each other.
const NEEDED: usize = 256;

fn main() -> anyhow::Result<()> {
    let length = number("WRENN_BENCH_MEMORY_MIB", 512) * MIB;
    let rounds = number("WRENN_BENCH_ROUNDS", 5);
    let directory = tempfile_in_memory()?;
    let bench = Bench::new(directory.path(), length)?;
    let orders = [
        ("sequential", bench.pages(false)),
        ("random", bench.pages(true)),
    ];
    let mut samples = Samples::default();
    for round in 0..rounds {
        let floor = bench.bare_loop()?;
        samples.floor.push(floor.by_clock);
        samples.floor_cpu.push(floor.by_processor);
        for (index, (name, order)) in orders.iter().enumerate() {
            let (speed, report) = bench.all_pages(order)?;
            eprintln!("round {round}: {name} {speed:?}, {:?}", report.counters);
            samples.pager[index].push(speed.by_clock);
            samples.pager_cpu.push(speed.by_processor);
        }
        samples
            .plain
            .push(bench.plain_handler(&orders[1].1)?.by_clock);
        samples
            .file
            .push(bench.private_mapping(&orders[1].1)?.by_clock);
        let (first, second) = bench.working_set()?;
        samples.faults.push(second);
        samples.first_faults.push(first);
        eprintln!("round {round}: {samples:?}");
    }
    let floor = median(&samples.floor);
    let record = |name: &str, unit: &str, samples: &[f64], against: &str, baseline: f64| {
        let record = Record::of(name, unit, samples.to_vec()).context("no rounds were run")?;
        anyhow::Ok(record.against(against, baseline))
    };
    let loop_name = "bare UFFDIO_COPY loop";
    let random = &samples.pager[1];
    let records = [
        record(
            "pager.copy.sequential",
            "MiB/s",
            &samples.pager[0],
            loop_name,
            floor,
        )?,
        record("pager.copy.random", "MiB/s", random, loop_name, floor)?,
        record(
            "pager.copy.cpu",
            "MiB/CPU-s",
            &samples.pager_cpu,
            loop_name,
            median(&samples.floor_cpu),
        )?,
        record(
            "pager.copy.over_plain",
            "MiB/s",
            random,
            "one thread, one page a fault",
            median(&samples.plain),
        )?,
        record(
            "pager.copy.over_file",
            "MiB/s",
            random,
            "private mapping of the file",
            median(&samples.file),
        )?,
        record(
            "pager.prefetch.faults",
            "faults",
            &samples.faults,
            "first resume",
            median(&samples.first_faults),
        )?,
    ];
    serde_json::to_writer(std::io::stdout(), &records).context("cannot print the records")
}

#[derive(Debug, Default)]
struct Samples {
    floor: Vec<f64>,
    floor_cpu: Vec<f64>,
    pager_cpu: Vec<f64>,
    pager: [Vec<f64>; 2],
    plain: Vec<f64>,
    file: Vec<f64>,
    first_faults: Vec<f64>,
    faults: Vec<f64>,
}

/// MiB a second.
#[derive(Clone, Copy, Debug)]
struct Speed {
    by_clock: f64,
    by_processor: f64,
}

#[derive(Clone, Copy)]
struct Begun {
    clock: Instant,
    processor: Duration,
}

impl Begun {
    fn now() -> anyhow::Result<Self> {
        Ok(Self {
            clock: Instant::now(),
            processor: processor_time()?,
        })
    }
}

/// What all threads of this process have used.
fn processor_time() -> anyhow::Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(Duration::from(time))
}

struct Bench<'a> {
    directory: &'a Path,
    length: u64,
}

impl<'a> Bench<'a> {
    fn new(directory: &'a Path, length: u64) -> anyhow::Result<Self> {
        let mut bytes = vec![0; usize::try_from(MIB)?];
        StdRng::seed_from_u64(1).fill_bytes(&mut bytes);
        let mut file = File::create(directory.join("memory"))?;
        for _ in 0..length / MIB {
            file.write_all(&bytes)?;
        }
        Ok(Self { directory, length })
    }

    fn pages(&self, shuffled: bool) -> Vec<u64> {
        let mut pages: Vec<u64> = (0..self.length).step_by(4096).collect();
        if shuffled {
            pages.shuffle(&mut StdRng::seed_from_u64(2));
        }
        pages
    }

    fn speed_since(&self, begun: Begun) -> anyhow::Result<Speed> {
        #[allow(clippy::cast_precision_loss, reason = "a few thousand MiB")]
        let mib = (self.length / MIB) as f64;
        let processor = processor_time()?.saturating_sub(begun.processor);
        Ok(Speed {
            by_clock: mib / begun.clock.elapsed().as_secs_f64(),
            by_processor: mib / processor.as_secs_f64(),
        })
    }

    /// What the kernel needs alone: nobody faults, nobody waits. The source is mapped as a
    /// pager has it.
    fn bare_loop(&self) -> anyhow::Result<Speed> {
        let memory = GuestMemory::new(self.length)?;
        let file = MemoryFile::open(&self.directory.join("memory"))?;
        let begun = Begun::now()?;
        for offset in (0..self.length).step_by(usize::try_from(BLOCK)?) {
            memory.fill_from(offset, &file, offset, BLOCK)?;
        }
        self.speed_since(begun)
    }

    fn all_pages(&self, order: &[u64]) -> anyhow::Result<(Speed, Report)> {
        self.with_pager(None, |memory| {
            let begun = Begun::now()?;
            touch(memory, order);
            self.speed_since(begun)
        })
    }

    fn with_pager<T>(
        &self,
        working_set: Option<WorkingSetFile>,
        run: impl FnOnce(&GuestMemory) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Report)> {
        let socket = self.directory.join("pager.sock");
        let source = MemorySource::of_file(&self.directory.join("memory"))?;
        let mut config = PagerConfig::new(&socket, source);
        config.working_set = working_set;
        let pager = Pager::bind(config)?;
        let pager = std::thread::spawn(|| pager.serve());
        let memory = GuestMemory::new(self.length)?;
        let connection = memory.hand_over(&socket)?;
        let result = run(&memory);
        drop(connection);
        let report = pager.join().ok().context("the pager panicked")?;
        let ended = matches!(report.outcome, Outcome::Ended);
        ensure!(ended, "the pager failed: {report:?}");
        Ok((result?, report))
    }

    /// As the examples of a page-fault handler are written: one thread, one page each time.
    fn plain_handler(&self, order: &[u64]) -> anyhow::Result<Speed> {
        let memory = GuestMemory::new(self.length)?;
        let file = MemoryFile::open(&self.directory.join("memory"))?;
        let begun = Begun::now()?;
        std::thread::scope(|scope| {
            let handler = scope.spawn(|| -> anyhow::Result<()> {
                for _ in 0..order.len() {
                    let fault = memory.fault(Duration::from_secs(10))?;
                    let page = fault.context("no fault came")?;
                    memory.fill_from(page, &file, page, PAGE_SIZE)?;
                }
                Ok(())
            });
            touch(&memory, order);
            handler.join().ok().context("the handler panicked")?
        })?;
        self.speed_since(begun)
    }

    fn private_mapping(&self, order: &[u64]) -> anyhow::Result<Speed> {
        let begun = Begun::now()?;
        let file = PrivateMemory::open(&self.directory.join("memory"))?;
        for offset in order {
            // A guest writes too, and then each page is its own.
            file.store(*offset, file.load(*offset));
        }
        self.speed_since(begun)
    }

    /// Faults of a first resume, and of one that has its working set prefetched from the
    /// moment on at which it begins.
    fn working_set(&self) -> anyhow::Result<(f64, f64)> {
        let path = self.directory.join("working-set.bin");
        let needs: Vec<u64> = self.pages(true).into_iter().take(NEEDED).collect();
        let mut faults = [0.0; 2];
        for faults in &mut faults {
            let working_set = WorkingSetFile {
                path: path.clone(),
                window: Duration::from_secs(60),
                recorded: None,
            };
            let ((), report) = self.with_pager(Some(working_set), |memory| {
                touch(memory, &needs);
                Ok(())
            })?;
            #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
            let count = report.counters.faults as f64;
            *faults = count;
        }
        std::fs::remove_file(path)?;
        Ok((faults[0], faults[1]))
    }
}

fn touch(memory: &GuestMemory, order: &[u64]) {
    for offset in order {
        std::hint::black_box(memory.load(*offset));
    }
}

/// Not a disk's speed is measured.
fn tempfile_in_memory() -> anyhow::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").context("cannot make a directory in memory")
}

fn median(samples: &[f64]) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(0.0)
}

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}
