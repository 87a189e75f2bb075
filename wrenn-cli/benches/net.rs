//! Network slots: one taken from a pool against one made on demand (`slot.pool`), and the
//! same for fifty at once (`slot.pool_50`), the last of which counts.
//!
//! Needs root and no VM. It moves into namespaces of its own first, so it neither finds nor
//! leaves anything on the host, and no packet leaves it.

#[allow(dead_code, reason = "this benchmark needs no VMs")]
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use wrenn_bench::Record;
use wrenn_core::network::{Network, NetworkConfig, NetworkSlot, PoolConfig, SlotPool};

use support::{median, report, rounds};

const BURST: usize = 50;
const BASELINE: &str = "made on demand";
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> anyhow::Result<()> {
    // Before the runtime has threads: they are where this one is.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("cannot make namespaces (not root?)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(measure(Path::new("/run/wrenn")))
}

async fn measure(root: &Path) -> anyhow::Result<()> {
    let network = Network::open(NetworkConfig::default(), root, |_owner| false).await?;
    let records = [
        compare(&network, "slot.pool", 1, rounds(50)).await?,
        compare(&network, "slot.pool_50", BURST, rounds(10).min(10)).await?,
    ];
    let left = network.leftovers().await?;
    ensure!(left.is_empty(), "slots are left: {left:?}");
    report(&records)
}

/// Takes `count` slots at once, from a pool that has them and from one that has none.
async fn compare(
    network: &Network,
    name: &str,
    count: usize,
    rounds: usize,
) -> anyhow::Result<Record> {
    let sized = |size| PoolConfig {
        size,
        ..PoolConfig::default()
    };
    let pool = SlotPool::start(network.clone(), sized(count));
    let on_demand = SlotPool::start(network.clone(), sized(0));
    let (mut ready, mut made) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        until_full(&pool, count).await?;
        ready.push(time_taken(&pool, count).await?);
        // Not while the pool makes slots, too.
        until_full(&pool, count).await?;
        made.push(time_taken(&on_demand, count).await?);
        eprintln!(
            "{name}: round {round}: ready {:.3} ms, {BASELINE} {:.3} ms",
            ready[round], made[round]
        );
    }
    pool.drain().await?;
    let record = Record::of(name, "ms", ready).context("no rounds were run")?;
    Ok(record.against(BASELINE, median(made)))
}

async fn until_full(pool: &SlotPool, count: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    while pool.ready() < count {
        ensure!(begun.elapsed() < PATIENCE, "the pool does not fill");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn time_taken(pool: &SlotPool, count: usize) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let slots = try_join_all((0..count).map(|_| pool.take("sandbox"))).await?;
    let elapsed = begun.elapsed();
    try_join_all(slots.into_iter().map(NetworkSlot::remove)).await?;
    Ok(elapsed.as_secs_f64() * 1e3)
}
