//! Boots once, installs something, freezes the sandbox and spawns five that go on from there,
//! each as somebody of its own.
//!
//! Run as root on a host with KVM, with the images built and `wrenn-vmm` or `firecracker`
//! on PATH: `cargo run --example spawn_five`.

use anyhow::ensure;
use futures::future::try_join_all;
use wrenn_core::SandboxId;
use wrenn_core::guest::Command;
use wrenn_core::sandbox::{Host, HostConfig, SandboxConfig};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::open(HostConfig::default()).await?;
    let sandbox = host.create(SandboxConfig::from_template("base")).await?;
    let install = "printf '#!/bin/sh\\necho \"hello from $(hostname)\"\\n' >/usr/local/bin/hello
        chmod +x /usr/local/bin/hello";
    let install = Command::shell(install).user("root");
    ensure!(
        sandbox.exec(&install).await?.status.shell_code() == 0,
        "it was not installed"
    );

    // It goes on; what it was is on the disk, and can be given a name with `frozen.name`.
    let (sandbox, frozen, timings) = sandbox.freeze().await.map_err(|failed| failed.error)?;
    eprintln!("it stood still for {:?}", timings.stopped);

    let spawned = (0..5).map(|_| host.create_from(&frozen, frozen.child(SandboxId::random())));
    for sandbox in try_join_all(spawned).await? {
        let output = sandbox.exec(&Command::new("hello")).await?;
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
        sandbox.destroy().await?;
    }
    sandbox.destroy().await?;
    // Nobody needs what was frozen any more.
    drop(frozen);
    host.collect_builds().await?;
    host.settled().await;
    Ok(())
}
