//! The guest kernel of our own: compiled, or found in the cache, and put where microVMs run.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use wrenn_core::RootDirectory;
use wrenn_images::kernel::GuestKernel;
use wrenn_images::{Cache, install, own_kernel};
use wrenn_machine::MachineClient;

use crate::packages;
use crate::place::{self, Place};
use crate::report::Report;

pub(crate) async fn run(root: &Path, plan_only: bool) -> Result<ExitCode> {
    let missing = packages::missing_for_kernel();
    packages::announce(&missing);
    if plan_only {
        if missing.is_empty() {
            eprintln!("   no package is missing");
        }
        eprintln!("   the kernel is compiled where it is not in the cache");
        return Ok(ExitCode::SUCCESS);
    }
    if !missing.is_empty() {
        packages::install(&missing)?;
    }
    let report = Arc::new(Report::default());
    let kernel = {
        let report = Arc::clone(&report);
        tokio::task::spawn_blocking(move || own_kernel::build(&Cache::of_user()?, &*report))
            .await
            .context("the build of the kernel broke off")?
            .context("cannot build the kernel")?
    };
    let id = kernel.description.id.clone();
    match place::ready(root, &report).await? {
        Place::Host => {
            let root = root.to_owned();
            tokio::task::spawn_blocking(move || install::install(&root, &kernel, &[]))
                .await
                .context("the installation of the kernel broke off")?
                .context("cannot install the kernel")?;
            eprintln!("   installed on this host");
        }
        Place::Machine(machine) => {
            push(&machine, &kernel).await?;
            eprintln!("   installed in the machine, where microVMs run");
        }
    }
    say(&id);
    Ok(ExitCode::SUCCESS)
}

/// Puts the kernel into the machine's root directory. Its description comes last: what has
/// none is no kernel yet.
async fn push(machine: &MachineClient, kernel: &GuestKernel) -> Result<()> {
    let description = &kernel.description;
    let place = RootDirectory::new(RootDirectory::DEFAULT)
        .kernels()
        .join(&description.id);
    for name in [
        description.bzimage.as_str(),
        description.elf.as_str(),
        "kernel.json",
    ] {
        let remote = place.join(name).display().to_string();
        machine
            .push(&kernel.dir.join(name), &remote, 0o644)
            .await
            .with_context(|| format!("cannot push {name} into the machine"))?;
    }
    Ok(())
}

#[allow(
    clippy::print_stdout,
    reason = "the id is the result, and may go to another program"
)]
fn say(id: &str) {
    println!("{id}");
}
