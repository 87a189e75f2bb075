//! Moves files and directories into a sandbox and out of it, and watches a directory.
//!
//! Start a server with `wrenn up`, then: `cargo run --example files`.

#![allow(clippy::print_stdout, reason = "the example shows the output")]

use anyhow::{Result, ensure};
use wrenn_sdk::{Client, Sandbox};

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::from_env()?;
    let sandbox = client.sandboxes().create("base").await?;
    let moved = move_files(&sandbox).await;
    sandbox.destroy().await?;
    moved
}

async fn move_files(sandbox: &Sandbox) -> Result<()> {
    let files = sandbox.files();

    // Small files: whole, from memory. Directories that are missing are made.
    files.write("project/hello.txt", "hello\n").await?;
    print!("{}", files.read_text("project/hello.txt").await?);

    // Files of any size: streamed, with progress.
    let local = tempfile::tempdir()?;
    let large = local.path().join("large");
    std::fs::write(&large, vec![b'x'; 4 << 20])?;
    let uploaded = files
        .upload(&large, "project/large")
        .on_progress(|progress| eprintln!("{} bytes of {:?}", progress.done, progress.total))
        .await?;
    println!("{} bytes are in the sandbox", uploaded.bytes);

    // Directories: nothing that the sandbox sends is written outside of `copy`.
    let copy = local.path().join("copy");
    files.download_dir("project", &copy).await?;
    ensure!(std::fs::metadata(copy.join("large"))?.len() == uploaded.bytes);
    files.upload_dir(&copy, "project-again").await?;
    let mut entries = files.list("project-again").await?;
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    for entry in &entries {
        println!("{} {} bytes", entry.name, entry.size);
    }

    // A watch tells each change from its start on.
    let mut watcher = files.watch("project").await?;
    sandbox.shell("rm project/large").await?;
    let change = watcher.next().await?;
    println!("{} {}", change.name, change.kind);
    Ok(())
}
