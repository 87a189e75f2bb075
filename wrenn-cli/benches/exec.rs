//! `exec.roundtrip`: one short command through the guest's daemon, against the least that
//! it can cost: a bare TCP connection on which the guest forks and execs the same program.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use wrenn_bench::Record;
use wrenn_core::guest::Command;
use wrenn_core::sandbox::Sandbox;

use support::{contenders, median, report, rounds, small};

const PORT: u16 = 7000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let contenders = contenders().await?;
    let contender = contenders.first().context("no VMM was found")?;
    let sandbox = contender.host.create(small()?).await?;
    let outcome = measure(&sandbox).await;
    sandbox.destroy().await?;
    report(&[outcome?])
}

async fn measure(sandbox: &Sandbox) -> anyhow::Result<Record> {
    let server = Command::new("nc").args(["-ll", "-p", &PORT.to_string(), "-e", "/bin/true"]);
    let _server = sandbox.guest().start(&server.user("root")).await?;
    let address = sandbox.address(PORT);
    wait_until_served(address).await?;

    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds(100) {
        let begun = Instant::now();
        let output = sandbox
            .exec(&Command::new("/bin/true").user("root"))
            .await?;
        ours.push(begun.elapsed());
        ensure!(output.status.shell_code() == 0, "/bin/true failed");

        let begun = Instant::now();
        served_once(address).await?;
        floor.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let record = Record::of(
        "exec.roundtrip",
        "ms",
        ours.iter()
            .map(|elapsed| elapsed.as_secs_f64() * 1e3)
            .collect(),
    );
    let record = record.context("no rounds were run")?;
    Ok(record.against("tcp connection + fork + exec", median(floor)))
}

/// Connects; the guest forks, execs and closes.
async fn served_once(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.map(drop)
}

async fn wait_until_served(address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = served_once(address).await {
        ensure!(
            Instant::now() < deadline,
            "the guest does not serve {address}: {error}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
