//! Boots a microVM, runs a command, reads a file back, gives everything back.
//!
//! Run as root on a host with KVM, with the images built and `wrenn-vmm` or `firecracker`
//! on PATH: `cargo run --example hello_microvm`.

use wrenn_core::guest::Command;
use wrenn_core::sandbox::{Host, HostConfig, SandboxConfig};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::open(HostConfig::default()).await?;
    let sandbox = host.create(SandboxConfig::from_template("base")).await?;

    let script = "import platform; print('Hello from Linux', platform.release())";
    sandbox
        .guest()
        .write_file("/home/user/hello.py", script)
        .await?;
    let output = sandbox
        .exec(&Command::new("python3").args(["/home/user/hello.py"]))
        .await?;
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{:?} from start to first answer", sandbox.timings().healthy);

    sandbox.destroy().await?;
    Ok(())
}
