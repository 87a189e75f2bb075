//! What the server costs, each figure beside a floor of the same run.
//!
//! | figure | floor |
//! |---|---|
//! | `server.get`, `server.get.rate` | bare axum with the same statement on the same file |
//! | `server.list`: 10,000 sandboxes in pages of 100 | the same, page by page |
//! | `server.create` | the call to the agent |
//! | `server.exec`, and from the SDK `server.exec.sdk` | the call to the agent |
//! | `server.stream`, `server.upload`, `server.download` | the stream to the agent |
//!
//! All of it runs on this host, against a fake host with real guest daemons: no figure holds
//! the time of a virtual machine. `WRENN_BENCH_ROUNDS` says how often each is measured; words
//! of the command line (`calls`, `transfers`, `rows`) choose a part.

mod calls;
mod client;
mod environment;
mod floor;
mod rows;
mod transfers;

use std::io::Write as _;

use environment::Environment;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let environment = Environment::start().await?;
    let mut records = Vec::new();
    if is_chosen("calls") {
        records.extend(calls::measure(&environment).await?);
    }
    if is_chosen("transfers") {
        records.extend(transfers::measure(&environment).await?);
    }
    // Last, since it fills the database.
    if is_chosen("rows") {
        records.extend(rows::measure(&environment).await?);
    }
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &records)?;
    writeln!(out)?;
    environment.end().await;
    Ok(())
}

/// Whether a part is to be measured: all of them unless some are named.
fn is_chosen(part: &str) -> bool {
    // Cargo adds a flag.
    let mut words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'));
    let chosen = words.next().is_none_or(|first| first == part) || words.any(|word| word == part);
    if chosen {
        eprintln!("{part}");
    }
    chosen
}

/// How often something is measured: `WRENN_BENCH_ROUNDS`, or `default`.
fn rounds(default: usize) -> usize {
    std::env::var("WRENN_BENCH_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// The median of the floor's samples.
fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(0.0)
}

/// Milliseconds that something took.
async fn timed<T, E>(call: impl Future<Output = Result<T, E>>) -> Result<(f64, T), E> {
    let since = std::time::Instant::now();
    let done = call.await?;
    Ok((since.elapsed().as_secs_f64() * 1e3, done))
}
