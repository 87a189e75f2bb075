//! Boot, VMM by VMM in turn: from the start of the VMM's process until the guest's daemon
//! answers (`boot.healthy`) and until the first command has printed (`boot.first_exec`),
//! and what the VMM takes beyond the guest's memory (`vmm.rss_overhead`).

mod support;

use std::time::Instant;

use anyhow::{Context, ensure};
use wrenn_bench::Record;
use wrenn_core::guest::Command;

use support::{Contender, contenders, median, report, rounds, small};

/// Mappings of this size or more are the guest's memory: it has 128 MiB, and nothing else
/// of a VMM comes near.
const GUEST_MEMORY_KIB: u64 = 64 * 1024;
const NAMES: [(&str, &str); 3] = [
    ("boot.healthy", "ms"),
    ("boot.first_exec", "ms"),
    ("vmm.rss_overhead", "MiB"),
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let contenders = contenders().await?;
    let mut samples = vec![<[Vec<f64>; 3]>::default(); contenders.len()];
    // In turn, so that a slow minute of the machine falls on all.
    for round in 0..rounds(10) {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            let measured = boot_once(contender).await?;
            eprintln!(
                "round {round}: {}: healthy {:.0} ms, first exec {:.0} ms, overhead {:.1} MiB",
                contender.name, measured[0], measured[1], measured[2]
            );
            samples
                .iter_mut()
                .zip(measured)
                .for_each(|(samples, value)| samples.push(value));
        }
    }
    let (ours, baseline) = samples.split_first().context("no VMM was measured")?;
    let mut records = Vec::new();
    for (index, (name, unit)) in NAMES.into_iter().enumerate() {
        let record = Record::of(name, unit, ours[index].clone()).context("no rounds were run")?;
        records.push(match baseline.first() {
            Some(theirs) => record.against(&contenders[1].name, median(theirs[index].clone())),
            None => record,
        });
    }
    report(&records)
}

async fn boot_once(contender: &Contender) -> anyhow::Result<[f64; 3]> {
    let sandbox = contender.host.create(small()?).await?;
    let first = Instant::now();
    let output = sandbox.exec(&Command::new("echo").args(["hello"])).await?;
    let first_exec = sandbox.timings().healthy + sandbox.timings().init + first.elapsed();
    ensure!(
        output.stdout == b"hello\n",
        "the command printed something else"
    );
    let overhead = rss_overhead_mib(sandbox.vm().pid())?;
    let healthy = sandbox.timings().healthy;
    sandbox.destroy().await?;
    Ok([
        healthy.as_secs_f64() * 1e3,
        first_exec.as_secs_f64() * 1e3,
        overhead,
    ])
}

/// Resident memory of a VMM in MiB, without the guest's memory. Reads
/// `/proc/<pid>/smaps`, see proc_pid_smaps(5).
///
/// Guest memory need not be one mapping: a VMM may map parts of the kernel's file into
/// it. So neighbouring accessible mappings count as one, and those that together have
/// the guest's size are the guest's.
fn rss_overhead_mib(pid: u32) -> anyhow::Result<f64> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut overhead, mut run) = (0, MappingRun::default());
    for line in smaps.lines() {
        if let Some((start, end, accessible)) = mapping_header(line) {
            if start != run.end || !accessible {
                overhead += run.overhead_kib();
                // A guard belongs to nobody: the next run starts behind it.
                let start = if accessible { start } else { end };
                run = MappingRun {
                    start,
                    ..Default::default()
                };
            }
            run.end = end;
        } else if let Some(kib) = line.strip_prefix("Rss:") {
            run.resident_kib += kib.trim().trim_end_matches("kB").trim().parse::<u64>()?;
        }
    }
    let total = overhead + run.overhead_kib();
    #[allow(clippy::cast_precision_loss, reason = "a few thousand KiB")]
    let mib = total as f64 / 1024.0;
    Ok(mib)
}

/// Mappings without a gap between them.
#[derive(Default)]
struct MappingRun {
    start: u64,
    end: u64,
    resident_kib: u64,
}

impl MappingRun {
    fn overhead_kib(&self) -> u64 {
        let is_guest = (self.end - self.start) / 1024 >= GUEST_MEMORY_KIB;
        if is_guest { 0 } else { self.resident_kib }
    }
}

/// The first line of a mapping: its range, and whether it can be accessed at all.
fn mapping_header(line: &str) -> Option<(u64, u64, bool)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?, !rest.starts_with("---")))
}
