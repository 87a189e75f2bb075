//! Starts a command, writes to its standard input and shows its output as it comes.
//!
//! Start a server with `wrenn up`, then: `cargo run --example streaming_exec`.

#![allow(clippy::print_stdout, reason = "the example shows the output")]

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use wrenn_sdk::{Client, ExitStatus, ProcessEvent, Sandbox};

const SCRIPT: &str = "while read -r name; do echo \"hello, $name\"; done; echo bye >&2; exit 3";

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let client = Client::from_env()?;
    let sandbox = client.sandboxes().create("base").await?;
    let status = follow(&sandbox).await;
    sandbox.destroy().await?;

    let status = status?;
    println!("exit code {}", status.code);
    Ok(ExitCode::from(u8::try_from(status.code)?))
}

async fn follow(sandbox: &Sandbox) -> Result<ExitStatus> {
    let mut process = sandbox.spawn("sh", ["-c", SCRIPT]).stdin().await?;
    // Output that is not taken makes the command wait, and so does input that it does not
    // read: one task writes while this one reads.
    let mut stdin = process.take_stdin().context("it has no standard input")?;
    let writer = async move {
        for name in ["Ada", "Grace"] {
            stdin.write(format!("{name}\n")).await?;
        }
        stdin.close().await
    };
    let reader = async move {
        // A connection that breaks is made again, and no output is lost.
        while let Some(event) = process.next().await? {
            match event {
                ProcessEvent::Stdout(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
                ProcessEvent::Stderr(bytes) => eprint!("{}", String::from_utf8_lossy(&bytes)),
                ProcessEvent::Exit(status) => return Ok(Some(status)),
                _ => {}
            }
        }
        Ok(None)
    };
    let (status, ()) = tokio::try_join!(reader, writer)?;
    status.context("the stream ended before the command did")
}
