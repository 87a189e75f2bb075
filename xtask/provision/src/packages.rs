//! Debian packages that the host must have.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use wrenn_images::host_packages::{self, HostPackage};

/// What our tests need on top of what set-up needs.
const FOR_TESTS: &[HostPackage] = &[
    HostPackage {
        name: "python3-pip",
        program: "pip3",
        reason: "installs the existing client that the guest daemon is tested with",
    },
    HostPackage {
        name: "iproute2",
        program: "ip",
        reason: "brings up the network namespace that the client's tests run in",
    },
    HostPackage {
        name: "curl",
        program: "curl",
        reason: "runs the commands of the guide to the REST API",
    },
    HostPackage {
        name: "postgresql",
        program: "pg_lsclusters",
        reason: "is one of the two databases that the control plane's statements are tested on",
    },
];

/// The packages for set-up and tests that are not installed.
pub(crate) fn missing() -> Vec<&'static HostPackage> {
    host_packages::missing(host_packages::all().chain(FOR_TESTS)).collect()
}

/// The packages for set-up and for compiling a kernel that are not installed.
pub(crate) fn missing_for_kernel() -> Vec<&'static HostPackage> {
    let wanted = host_packages::all().chain(host_packages::FOR_OWN_KERNEL);
    host_packages::missing(wanted).collect()
}

/// Says which packages will be installed, and why.
pub(crate) fn announce(packages: &[&HostPackage]) {
    if !packages.is_empty() {
        eprintln!("   packages to install:");
    }
    for package in packages {
        eprintln!("     {:<18} {}", package.name, package.reason);
    }
}

/// Installs packages with apt, whose output is shown.
#[allow(
    clippy::disallowed_methods,
    reason = "installing packages is running apt"
)]
pub(crate) fn install(packages: &[&HostPackage]) -> Result<()> {
    apt(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages.iter().map(|package| package.name));
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .arg("-q")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Standard output belongs to results.
        .stdout(std::io::stderr())
        .status()
        .context("cannot start apt-get: this set-up is for Debian 12 or newer")?;
    if !status.success() {
        bail!(
            "`apt-get {}` failed ({status}): run it by hand to see more",
            arguments.join(" ")
        );
    }
    Ok(())
}
