//! Boots a microVM and lends one of its ports to this host, until standard input ends:
//! `expose_port TEMPLATE GUEST_PORT LISTEN_ADDRESS`. Prints the address that it listens on
//! once connections are taken. The guest's daemon asks for no token, so that its own port,
//! 49983, can be lent to clients that have none.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::Context;
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use wrenn_core::sandbox::{GuestAccess, Host, HostConfig, SandboxConfig};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().with_context(|| format!("which {what}?"));
    let (template, port) = (next("template")?, next("guest port")?.parse()?);
    let listen: SocketAddr = next("listen address")?.parse()?;

    let host = Host::open(HostConfig {
        vmm: std::env::var_os("WRENN_VMM").map(Into::into),
        ..HostConfig::default()
    })
    .await?;
    let config = SandboxConfig {
        access: GuestAccess::Open,
        ..SandboxConfig::from_template(template)
    };
    let sandbox = host.create(config).await?;
    let guest = sandbox.address(port);
    let listener = TcpListener::bind(listen).await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;

    let mut stdin = tokio::io::stdin();
    let mut byte = [0; 1];
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut outside, _) = accepted?;
                tokio::spawn(async move {
                    let mut inside = TcpStream::connect(guest).await?;
                    copy_bidirectional(&mut outside, &mut inside).await
                });
            }
            read = stdin.read(&mut byte) => if read? == 0 { break },
            reason = sandbox.exited() => anyhow::bail!("the VM ended: {reason}"),
        }
    }
    sandbox.destroy().await?;
    Ok(())
}
