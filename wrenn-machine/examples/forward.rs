//! Starts a web server in the machine and asks it from the host.
//!
//! `cargo run -p wrenn-machine --example forward -- [MACHINE [open]]`

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wrenn_images::{Event, Progress};
use wrenn_machine::{DetachedProgram, Machine, MachineConfig, Programs};

const PORT: u16 = 7410;
const PAGE: &str = "/srv/index.html";

struct Lines;

impl Progress for Lines {
    fn report(&self, event: Event<'_>) {
        eprintln!("{event:?}");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or("default".to_owned());
    let network = words.next().unwrap_or("closed".to_owned());
    let programs = Programs::beside_this_program()
        .map_err(|path| format!("{} is missing: cargo build --workspace", path.display()))?;
    let machine = Machine::of_user(&name.parse()?)?;
    let config = MachineConfig {
        network: Some(network.parse()?),
        ..MachineConfig::default()
    };
    let running = machine.start(&config, &programs, Arc::new(Lines)).await?;
    let client = running.client()?;

    client
        .write_file(PAGE, "hello from the machine\n", 0o644)
        .await?;
    let server = DetachedProgram::new("web", "/bin/busybox", "/var/log/web.log").args([
        "httpd",
        "-f",
        "-v",
        "-p",
        &PORT.to_string(),
        "-h",
        "/srv",
    ]);
    let started = client.start_detached(&server).await?;
    let pid = client.detached_pid("web").await?;
    eprintln!("started: {started}, process {pid:?} in the machine");

    let address = running.forward(PORT).await?;
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"GET /index.html HTTP/1.0\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    eprintln!("{address} answers:\n{answer}");

    let ran = client.stop_detached("web", Duration::from_secs(5)).await?;
    let log = client.guest().read_file("/var/log/web.log").await?;
    let left = client.detached_pid("web").await?;
    let log = String::from_utf8_lossy(&log);
    eprintln!("stopped: {ran}, left: {left:?}, log:\n{log}");
    Ok(())
}
