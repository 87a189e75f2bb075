//! `files.up` and `files.down`: how fast a file goes into a guest and out of it, against a
//! plain TCP stream over the same TAP. `files.up.kept` is the same upload against a stream
//! that the guest keeps in a file, too. Files lie in the guest's memory (`/dev/shm`), so that
//! no disk is measured.

mod support;

use std::io::Cursor;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wrenn_bench::Record;
use wrenn_core::guest::Command;
use wrenn_core::sandbox::{Sandbox, SandboxConfig};
use wrenn_core::vm::Resources;

use support::{contenders, median, report, rounds};

const MIB: usize = 1 << 20;
/// Enough that neither side's buffers matter, and little enough for a small guest.
const SIZE_MIB: usize = 64;
const FILE: &str = "/dev/shm/file";
const SINK: u16 = 7001;
const SOURCE: u16 = 7002;
const KEEPER: u16 = 7003;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let contenders = contenders().await?;
    let host = &contenders.first().context("no VMM was found")?.host;
    let sandbox = host
        .create(SandboxConfig {
            resources: Resources::new(1, 512)?,
            ..SandboxConfig::from_template("minimal")
        })
        .await?;
    let outcome = measure(&sandbox).await;
    sandbox.destroy().await?;
    host.settled().await;
    report(&outcome?)
}

async fn measure(sandbox: &Sandbox) -> anyhow::Result<Vec<Record>> {
    let guest = sandbox.guest().as_user("root")?;
    // `-ll` serves one connection after another.
    let serve = |port: u16, program: String| {
        Command::new("nc")
            .args(["-ll", "-p", &port.to_string(), "-e", "/bin/sh", "-c"])
            .args([program])
            .user("root")
    };
    let _sink = guest
        .start(&serve(SINK, "cat >/dev/null".to_owned()))
        .await?;
    let give = format!("dd if=/dev/zero bs=64k count={} 2>/dev/null", SIZE_MIB * 16);
    let _source = guest.start(&serve(SOURCE, give)).await?;
    let _keeper = guest
        .start(&serve(KEEPER, "cat >/dev/shm/kept".to_owned()))
        .await?;
    let [sink, source, keeper] = [SINK, SOURCE, KEEPER].map(|port| sandbox.address(port));
    for port in [sink, keeper] {
        drop(connect(port).await?);
    }

    let bytes = Bytes::from(vec![0_u8; SIZE_MIB * MIB]);
    let mut speeds: [Vec<f64>; 5] = Default::default();
    for round in 0..rounds(5) {
        let remove = Command::shell("rm -f /dev/shm/*").user("root");
        guest.output(&remove).await?;
        let begun = Instant::now();
        guest.upload(FILE, None, Cursor::new(bytes.clone())).await?;
        speeds[0].push(speed(begun));

        speeds[1].push(send(sink, &bytes).await?);
        speeds[4].push(send(keeper, &bytes).await?);

        let begun = Instant::now();
        let read = guest.download(FILE, &mut tokio::io::sink()).await?;
        ensure!(read == bytes.len() as u64, "the file came back cut");
        speeds[2].push(speed(begun));

        let begun = Instant::now();
        let mut stream = connect(source).await?;
        let read = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        ensure!(read == bytes.len() as u64, "the stream came cut");
        speeds[3].push(speed(begun));
        let last = speeds.each_ref().map(|speeds| speeds.last().copied());
        eprintln!("round {round}: up, TCP up, down, TCP down, TCP kept in MiB/s: {last:.1?}");
    }
    let [up, tcp_up, down, tcp_down, kept] = speeds;
    let record = |name: &str, speeds: Vec<f64>| {
        Record::of(name, "MiB/s", speeds).context("no rounds were run")
    };
    Ok(vec![
        record("files.up", up.clone())?.against("plain TCP stream", median(tcp_up)),
        record("files.up.kept", up)?.against("TCP stream into a file", median(kept)),
        record("files.down", down)?.against("plain TCP stream", median(tcp_down)),
    ])
}

/// How fast the guest takes a plain stream of these bytes.
async fn send(to: SocketAddr, bytes: &[u8]) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut stream = connect(to).await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    // The guest closes when it has taken everything.
    ensure!(stream.read(&mut [0]).await? == 0, "the guest answers");
    Ok(speed(begun))
}

#[allow(clippy::cast_precision_loss, reason = "a few MiB")]
fn speed(begun: Instant) -> f64 {
    SIZE_MIB as f64 / begun.elapsed().as_secs_f64()
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => ensure!(
                Instant::now() < deadline,
                "the guest does not serve {address}: {error}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
