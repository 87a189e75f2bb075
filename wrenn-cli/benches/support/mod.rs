//! What the benchmarks share: the host, the VMMs to compare, how a run is counted.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use wrenn_core::RootDirectory;
use wrenn_core::sandbox::{Host, HostConfig, MemorySupply, SandboxConfig};
use wrenn_core::vm::Resources;

/// How long a guest may take to boot. Generous: sixteen may boot at once on one processor
/// that is emulated.
const BOOT_DEADLINE: Duration = Duration::from_secs(600);

/// A host that runs its VMs with one VMM, and what to call it.
#[allow(dead_code, reason = "not every benchmark names its contenders")]
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) host: Host,
}

/// The VMM under test, and the one to compare it with where one is given.
pub(crate) async fn contenders() -> anyhow::Result<Vec<Contender>> {
    let mut contenders = vec![open(variable("WRENN_VMM")).await?];
    if let Some(baseline) = variable("WRENN_BASELINE_VMM") {
        contenders.push(open(Some(baseline)).await?);
    }
    Ok(contenders)
}

async fn open(vmm: Option<PathBuf>) -> anyhow::Result<Contender> {
    let host = Host::open(HostConfig { vmm, ..config() }).await?;
    let sandbox = host
        .create(small()?)
        .await
        .context("a first sandbox, to warm up")?;
    let info = sandbox.vm().api().info().await?;
    let name = format!("{} {}", info.app_name.to_lowercase(), info.vmm_version);
    sandbox.destroy().await?;
    Ok(Contender { name, host })
}

fn config() -> HostConfig {
    HostConfig {
        root: variable("AGENT_FILES_ROOTDIR")
            .map_or_else(RootDirectory::default, RootDirectory::new),
        vmm: variable("WRENN_VMM"),
        pager: variable("WRENN_PAGER"),
        search_path: std::env::var_os("PATH"),
        boot_deadline: BOOT_DEADLINE,
        ..HostConfig::default()
    }
}

/// A host with the VMM under test, whose guests get their memory like this.
#[allow(dead_code, reason = "most benchmarks only boot")]
pub(crate) async fn host(memory: MemorySupply) -> anyhow::Result<Host> {
    Ok(Host::open(HostConfig { memory, ..config() }).await?)
}

#[allow(dead_code, reason = "not every benchmark measures durations of others")]
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// A sandbox of the small template.
pub(crate) fn small() -> anyhow::Result<SandboxConfig> {
    Ok(SandboxConfig {
        resources: Resources::new(1, 128)?,
        ..SandboxConfig::from_template("minimal")
    })
}

/// How often something is measured: `WRENN_BENCH_ROUNDS`, or `default`.
pub(crate) fn rounds(default: usize) -> usize {
    std::env::var("WRENN_BENCH_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// The median of figures that cannot be compared otherwise.
pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(0.0)
}

/// Prints the records as the one JSON array that a benchmark prints.
pub(crate) fn report(records: &[wrenn_bench::Record]) -> anyhow::Result<()> {
    serde_json::to_writer(std::io::stdout(), records).context("cannot print the records")
}
