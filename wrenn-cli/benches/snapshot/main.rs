//! Snapshots. Figures of the engine alone need no VM: `cargo bench -p wrenn-cli --bench
//! snapshot` runs them on any host.

mod header;
mod publish;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "no VM is started here")]
mod support;

fn main() -> anyhow::Result<()> {
    let mut records = header::measure()?;
    records.extend(publish::measure()?);
    support::report(&records)
}
