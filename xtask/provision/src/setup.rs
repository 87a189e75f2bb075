//! Making everything ready, and saying first what that will take.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use wrenn_core::RootDirectory;
use wrenn_core::sandbox::SandboxImages;
use wrenn_core::template;
use wrenn_images::{Cache, install, kernel, rootfs};

use crate::packages;
use crate::place::{self, Place};
use crate::report::Report;

pub(crate) async fn setup(root: &Path, plan_only: bool) -> Result<ExitCode> {
    let start = Instant::now();
    let missing = packages::missing();
    packages::announce(&missing);
    if plan_only {
        if missing.is_empty() {
            eprintln!("   no package is missing");
        }
        eprintln!("   guest images and the machine are built where they are not in the cache");
        return Ok(ExitCode::SUCCESS);
    }
    if !missing.is_empty() {
        packages::install(&missing)?;
        eprintln!(
            "   packages installed: {:.1} s",
            start.elapsed().as_secs_f64()
        );
    }
    let report = Arc::new(Report::default());
    match place::ready(root, &report).await? {
        Place::Host => {
            eprintln!("   microVMs run on this host");
            let (root, report) = (root.to_owned(), Arc::clone(&report));
            tokio::task::spawn_blocking(move || install_images(&root, &report))
                .await
                .context("the build of the guest images broke off")??;
        }
        Place::Machine(_) => eprintln!("   microVMs run in the machine, as this host can't"),
    }
    eprintln!("── Set-up: {:.1} s", start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// Builds all guest images and lays them into the host's root directory.
fn install_images(root: &Path, report: &Report) -> Result<()> {
    let programs = place::programs()?;
    let cache = Cache::of_user()?;
    let kernel = kernel::guest_kernel(&cache, &programs.envd, report)
        .context("cannot build the guest kernel")?;
    let images = rootfs::TEMPLATES
        .iter()
        .map(|name| {
            rootfs::build(name, &cache, &programs.envd, report)
                .with_context(|| format!("cannot build the template {name}"))
        })
        .collect::<Result<Vec<_>>>()?;
    install::install(root, &kernel, &images)
        .with_context(|| format!("cannot install the images into {}", root.display()))?;
    let root = RootDirectory::new(root);
    template::prune_all(&root, &SandboxImages::of(&root))
        .map(drop)
        .context("cannot remove the images that nobody uses any more")
}
