//! Snapshots. Figures of the engine alone need no VM: `cargo bench -p wrenn-cli --bench
//! snapshot` runs them on any host. Where a VMM is named (`WRENN_VMM`), whole lives are
//! measured too.

mod header;
mod life;
mod publish;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "contenders are for others")]
mod support;

fn main() -> anyhow::Result<()> {
    let mut records = header::measure()?;
    records.extend(publish::measure()?);
    if std::env::var_os("WRENN_VMM").is_some() {
        let runtime = tokio::runtime::Runtime::new()?;
        records.extend(runtime.block_on(life::measure())?);
    }
    support::report(&records)
}
