//! What a life costs: pausing, resuming, spawning and forking, each beside what nobody can
//! do without.
//!
//! | figure | what it takes | its floor |
//! |---|---|---|
//! | `pause.full`, `pause.diff.N` | the pause of a sandbox, with N MiB changed since | the same bytes by `write` and `fsync` |
//! | `resume.file` | until the first command has printed, memory mapped | the VMM's own load, until the daemon answers |
//! | `resume.uffd` | the same by a pager, nothing known of what is needed | `resume.file` |
//! | `resume.prefetch` | the same, what is needed first brought ahead | `resume.file` |
//! | `….cold` | the same with nothing in the host's page cache | the warm one |
//! | `spawn.template` | from the wish for a sandbox to its first command | a boot |
//! | `fork.N` | N children of a running one, until each has printed | one boot |

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use futures::future::try_join_all;
use wrenn_bench::Record;
use wrenn_core::guest::Command;
use wrenn_core::sandbox::{
    Host, Keep, MemorySupply, PauseReason, Paused, Sandbox, SandboxConfig, Timings,
};
use wrenn_core::{RootDirectory, SandboxId};

use crate::support::{self, median, milliseconds, rounds, small};

const CHANGED_MIB: [usize; 3] = [1, 16, 128];
/// Lets files in memory take nearly all of it.
const ROOM: &str = "mount -o remount,size=90% /run";
const FORKS: [usize; 3] = [1, 4, 16];
/// What a guest holds beside itself, so that 128 MiB of it can change.
const MEMORY_MIB: u64 = 256;

pub(crate) async fn measure() -> anyhow::Result<Vec<Record>> {
    let mapped = support::host(MemorySupply::Quickest).await?;
    let paged = support::host(MemorySupply::Paged).await?;
    let mut records = pauses(&mapped).await?;
    let file = resumes(&mapped, "resume.file", None).await?;
    let file_p50 = file[0].p50;
    records.extend(file);
    records.extend(resumes(&paged, "resume", Some(file_p50)).await?);
    records.extend(spawns(&mapped).await?);
    mapped.collect_builds().await?;
    mapped.settled().await;
    Ok(records)
}

fn kept(mut config: SandboxConfig) -> anyhow::Result<SandboxConfig> {
    config.keep = Keep::UntilDestroyed;
    config.resources = wrenn_core::vm::Resources::new(1, MEMORY_MIB)?;
    Ok(config)
}

async fn first_exec(sandbox: &Sandbox) -> anyhow::Result<()> {
    let output = sandbox.exec(&Command::new("echo").args(["hello"])).await?;
    ensure!(
        output.stdout == b"hello\n",
        "the command printed something else"
    );
    Ok(())
}

async fn shell(sandbox: &Sandbox, line: &str) -> anyhow::Result<()> {
    let output = sandbox.exec(&Command::shell(line).user("root")).await?;
    ensure!(
        output.status.shell_code() == 0,
        "{line}: {:?}",
        output.status
    );
    Ok(())
}

async fn pause(sandbox: Sandbox) -> anyhow::Result<Paused> {
    sandbox
        .pause(PauseReason::Asked)
        .await
        .map_err(|failed| anyhow!(failed.error))
}

async fn resume(paused: Paused) -> anyhow::Result<Sandbox> {
    paused
        .resume()
        .await
        .map_err(|failed| anyhow!(failed.error))
}

async fn pauses(host: &Host) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    let (mut full, mut floor) = (Vec::new(), Vec::new());
    let mut diffs = CHANGED_MIB.map(|_| (Vec::new(), Vec::new()));
    for _ in 0..rounds(5) {
        let sandbox = host.create(kept(small()?)?).await?;
        shell(&sandbox, ROOM).await?;
        let paused = pause(sandbox).await?;
        full.push(milliseconds(paused.timings().total));
        floor.push(written(host.root(), written_bytes(host, &paused)?)?);
        let mut paused = paused;
        for (mib, (ours, floor)) in CHANGED_MIB.iter().zip(&mut diffs) {
            let sandbox = resume(paused).await?;
            let fill = format!("dd if=/dev/urandom of=/run/changed bs=1M count={mib}");
            shell(&sandbox, &fill).await?;
            paused = pause(sandbox).await?;
            ours.push(milliseconds(paused.timings().total));
            floor.push(written(host.root(), written_bytes(host, &paused)?)?);
        }
        paused.destroy().await?;
        host.collect_builds().await?;
    }
    records.push(record(
        "pause.full",
        full,
        "write and fsync of as many bytes",
        floor,
    )?);
    for (mib, (ours, floor)) in CHANGED_MIB.iter().zip(diffs) {
        let name = format!("pause.diff.{mib}");
        records.push(record(
            &name,
            ours,
            "write and fsync of as many bytes",
            floor,
        )?);
    }
    Ok(records)
}

fn record(name: &str, ours: Vec<f64>, floor: &str, samples: Vec<f64>) -> anyhow::Result<Record> {
    let record = Record::of(name, "ms", ours).context("no rounds were run")?;
    Ok(record.against(floor, median(samples)))
}

/// Bytes of memory that the pause has written.
fn written_bytes(host: &Host, paused: &Paused) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;

    let build = paused.build().context("it is paused as nothing")?;
    let memory = host.root().builds().join(build.as_str()).join("memory.bin");
    Ok(std::fs::metadata(memory)?.blocks() * 512)
}

/// Milliseconds that writing and syncing so many bytes takes.
fn written(root: &RootDirectory, bytes: u64) -> anyhow::Result<f64> {
    let path = root.path().join("bench-floor");
    let piece = vec![0x5a; 1 << 20];
    let begun = Instant::now();
    let mut file = File::create(&path)?;
    let mut left = usize::try_from(bytes)?;
    while left > 0 {
        let part = left.min(piece.len());
        file.write_all(&piece[..part])?;
        left -= part;
    }
    file.sync_all()?;
    let took = begun.elapsed();
    std::fs::remove_file(path)?;
    Ok(milliseconds(took))
}

/// Resumes from one snapshot, again and again.
async fn resumes(host: &Host, name: &str, file: Option<f64>) -> anyhow::Result<Vec<Record>> {
    let sandbox = host.create(kept(small()?)?).await?;
    shell(&sandbox, ROOM).await?;
    shell(&sandbox, "dd if=/dev/urandom of=/run/held bs=1M count=32").await?;
    let (sandbox, frozen, _) = sandbox
        .freeze()
        .await
        .map_err(|failed| anyhow!(failed.error))?;
    sandbox.destroy().await?;
    let mut records = Vec::new();
    let known = host
        .root()
        .snapshots()
        .join("working-sets")
        .join(frozen.build().as_str());
    let variants: &[(&str, bool, bool)] = match file {
        None => &[("", true, false), (".cold", true, true)],
        Some(_) => &[
            (".uffd", false, false),
            (".prefetch", true, false),
            (".prefetch.cold", true, true),
        ],
    };
    for (variant, prefetch, cold) in variants {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..rounds(8) {
            if !prefetch && known.exists() {
                std::fs::remove_file(&known)?;
            }
            if *cold {
                std::fs::write("/proc/sys/vm/drop_caches", "3")?;
            }
            let (sandbox, took) = spawned(host, &frozen).await?;
            eprintln!("{name}{variant}: {}", phases(sandbox.timings(), took));
            ours.push(milliseconds(took));
            floor.push(milliseconds(sandbox.timings().healthy));
            if file.is_some() && *prefetch {
                recorded(&known).await;
            }
            sandbox.destroy().await?;
        }
        let name = format!("{name}{variant}");
        let record = Record::of(&name, "ms", ours).context("no rounds were run")?;
        records.push(match file {
            None => record.against("VMM process to healthy", median(floor)),
            Some(file) => record.against("resume.file", file),
        });
        if file.is_some() && !prefetch {
            // The next variant begins with what is known of this one.
            let (sandbox, _) = spawned(host, &frozen).await?;
            recorded(&known).await;
            sandbox.destroy().await?;
        }
    }
    drop(frozen);
    host.collect_builds().await?;
    Ok(records)
}

async fn recorded(known: &Path) {
    while !known.exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn spawned(
    host: &Host,
    frozen: &wrenn_core::sandbox::Frozen,
) -> anyhow::Result<(Sandbox, Duration)> {
    let begun = Instant::now();
    let sandbox = host
        .create_from(frozen, frozen.child(SandboxId::random()))
        .await?;
    first_exec(&sandbox).await?;
    Ok((sandbox, begun.elapsed()))
}

async fn spawns(host: &Host) -> anyhow::Result<Vec<Record>> {
    let source = host.create(small()?).await?;
    let (source, frozen, _) = source
        .freeze()
        .await
        .map_err(|failed| anyhow!(failed.error))?;
    frozen.name(host.root(), "bench-spawn")?;
    let (mut spawn, mut boot) = (Vec::new(), Vec::new());
    for _ in 0..rounds(8) {
        for (template, samples) in [("bench-spawn", &mut spawn), ("minimal", &mut boot)] {
            let begun = Instant::now();
            let config = SandboxConfig {
                template: template.to_owned(),
                ..small()?
            };
            let sandbox = host.create(config).await?;
            first_exec(&sandbox).await?;
            let took = begun.elapsed();
            samples.push(milliseconds(took));
            eprintln!("{template}: {}", phases(sandbox.timings(), took));
            sandbox.destroy().await?;
        }
    }
    wrenn_core::sandbox::NamedSnapshot::delete(host.root(), "bench-spawn")?;
    let mut records = vec![record(
        "spawn.template",
        spawn,
        "boot to first exec",
        boot.clone(),
    )?];
    let mut source = source;
    for at_once in FORKS {
        let (mut samples, mut stopped) = (Vec::new(), Vec::new());
        for _ in 0..rounds(4) {
            let begun = Instant::now();
            let (parent, frozen, timings) = source
                .freeze()
                .await
                .map_err(|failed| anyhow!(failed.error))?;
            source = parent;
            stopped.push(milliseconds(timings.stopped));
            let children = try_join_all((0..at_once).map(|_| spawned(host, &frozen))).await?;
            samples.push(milliseconds(begun.elapsed()));
            for (child, _) in children {
                child.destroy().await?;
            }
            drop(frozen);
            host.collect_builds().await?;
        }
        eprintln!(
            "fork.{at_once}: the parent stood still for {:.0} ms",
            median(stopped)
        );
        records.push(record(
            &format!("fork.{at_once}"),
            samples,
            "one boot to first exec",
            boot.clone(),
        )?);
    }
    source.destroy().await?;
    Ok(records)
}

fn phases(timings: &Timings, took: Duration) -> String {
    format!(
        "disk {:.1}, slot {:.1}, VMM {:.1}, healthy {:.1}, init {:.1}, in all {:.1}, first command {:.1} ms",
        milliseconds(timings.disk),
        milliseconds(timings.slot),
        milliseconds(timings.vmm),
        milliseconds(timings.healthy),
        milliseconds(timings.init),
        milliseconds(timings.total),
        milliseconds(took.saturating_sub(timings.total))
    )
}
