//! `create.first_exec.N`: from the wish for N sandboxes at once until a command has printed
//! in each. Its floor is what the VM alone takes in the same creation: from the start of the
//! VMM's process until the guest's daemon answers. The phases go to standard error.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use wrenn_bench::Record;
use wrenn_core::guest::Command;
use wrenn_core::sandbox::{Host, Sandbox, Timings};

use support::{contenders, median, report, rounds, small};

const AT_ONCE: [usize; 3] = [1, 4, 16];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let contenders = contenders().await?;
    let host = &contenders.first().context("no VMM was found")?.host;
    let mut records = Vec::new();
    for at_once in AT_ONCE {
        let (mut samples, mut floor) = (Vec::new(), Vec::new());
        for round in 0..rounds(32 / at_once).max(1) {
            let created = try_join_all((0..at_once).map(|_| first_exec(host))).await?;
            for (sandbox, elapsed) in created {
                let timings = *sandbox.timings();
                eprintln!(
                    "{at_once} at once, round {round}: {}",
                    phases(&timings, elapsed)
                );
                samples.push(milliseconds(elapsed));
                floor.push(milliseconds(timings.healthy));
                sandbox.destroy().await?;
            }
        }
        let record = Record::of(format!("create.first_exec.{at_once}"), "ms", samples);
        let record = record.context("no rounds were run")?;
        records.push(record.against("VMM process to healthy", median(floor)));
    }
    host.settled().await;
    report(&records)
}

async fn first_exec(host: &Host) -> anyhow::Result<(Sandbox, Duration)> {
    let begun = Instant::now();
    let sandbox = host.create(small()?).await?;
    let output = sandbox.exec(&Command::new("echo").args(["hello"])).await?;
    ensure!(
        output.stdout == b"hello\n",
        "the command printed something else"
    );
    Ok((sandbox, begun.elapsed()))
}

fn phases(timings: &Timings, elapsed: Duration) -> String {
    format!(
        "disk {:.1}, slot {:.1}, VMM {:.1}, healthy {:.1}, init {:.1}, first exec after {:.1} ms",
        milliseconds(timings.disk),
        milliseconds(timings.slot),
        milliseconds(timings.vmm),
        milliseconds(timings.healthy),
        milliseconds(timings.init),
        milliseconds(elapsed)
    )
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
