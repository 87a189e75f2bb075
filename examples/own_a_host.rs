//! Owns the sandboxes of a host as a daemon would: creates two at once, copies a file in
//! and out, follows a command's output as it comes, and destroys them.
//!
//! Run as root on a host with KVM, with the images built and `wrenn-vmm` or `firecracker`
//! on PATH: `cargo run --example own_a_host`.

use std::io::Cursor;

use anyhow::ensure;
use wrenn_core::fleet::{Fleet, Limits};
use wrenn_core::guest::{Command, ProcessEvent};
use wrenn_core::sandbox::{Host, HostConfig, SandboxConfig};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::open(HostConfig::default()).await?;
    // Takes over what an earlier run left running.
    let fleet = Fleet::open(host, Limits::of_this_host()).await?;
    let wanted = || SandboxConfig::from_template("base");
    let (first, second) = tokio::try_join!(fleet.create(wanted()), fleet.create(wanted()))?;

    // A lease keeps the sandbox from counting as idle for as long as it is held.
    let lease = first.guest()?;
    let poem = "roses are red\nviolets are blue\n";
    let source = Cursor::new(poem.as_bytes());
    lease.guest.upload("/home/user/poem", None, source).await?;
    let mut process = lease
        .guest
        .start(&Command::shell("sort -r poem | tee sorted"))
        .await?;
    let status = loop {
        match process.next().await? {
            ProcessEvent::Stdout(bytes) => eprint!("{}", String::from_utf8_lossy(&bytes)),
            ProcessEvent::Exit(status) => break status,
            _ => {}
        }
    };
    ensure!(status.shell_code() == 0, "the command failed: {status:?}");
    let mut sorted = Vec::new();
    lease
        .guest
        .download("/home/user/sorted", &mut sorted)
        .await?;
    ensure!(sorted.len() == poem.len(), "the copy has another length");
    drop(lease);

    for sandbox in [first, second] {
        sandbox.destroy().await?;
    }
    fleet.leave().await;
    Ok(())
}
