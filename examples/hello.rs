//! Creates a sandbox, runs a command in it and destroys it.
//!
//! Start a server with `wrenn up`, then: `cargo run --example hello`.

#![allow(clippy::print_stdout, reason = "the example shows the output")]

use anyhow::{Context as _, Result, ensure};
use wrenn_sdk::{Client, Sandbox};

#[tokio::main]
async fn main() -> Result<()> {
    // The server and the key come from WRENN_API_URL and WRENN_API_KEY, or else from the file
    // that `wrenn up` writes.
    let client = Client::from_env()?;
    let sandbox = client.sandboxes().create("base").await?;

    // A sandbox lives until it is destroyed, so an error must not skip that.
    let greeted = greet(&sandbox).await;
    sandbox.destroy().await?;
    greeted
}

async fn greet(sandbox: &Sandbox) -> Result<()> {
    let result = sandbox
        .exec("python3", ["-c", "print('hello from', 6 * 7)"])
        .await
        .context("the command did not run")?;
    // A command that fails is a result and not an error.
    ensure!(result.success(), "python3: {}", result.stderr_text());
    print!("{}", result.stdout_text());
    Ok(())
}
