//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Sets the workspace up, shows it at work, tests, measures and checks it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Installs and builds what is missing: packages, programs, guest images, the machine.
    #[command(after_help = "\
Examples:
  cargo xtask setup            does what is needed, and nothing the second time
  cargo xtask setup --plan     only says what is missing")]
    Setup(SetupArgs),
    /// Builds a guest kernel of our own from Debian's sources, and says its id.
    #[command(after_help = "\
It is used where it is asked for by its id; Debian's kernel stays the default.

Examples:
  cargo xtask kernel           builds it, which takes minutes, and nothing the second time
  cargo xtask kernel --plan    only says what is missing
  wrenn run --kernel ID -- uname -a")]
    Kernel(KernelArgs),
    /// Boots a microVM and runs real commands in it, each step with its time.
    #[command(after_help = "\
Example:
  cargo xtask demo             ends with `demo: ok`")]
    Demo(DemoArgs),
    /// Runs every test: unit, integration, documentation, end-to-end.
    #[command(after_help = "\
The last line is `N passed, N failed, N skipped`.

Examples:
  cargo xtask test
  cargo xtask test --no-e2e    only what needs no virtual machine")]
    Test(TestArgs),
    /// Runs the end-to-end suite on this host, or in the machine where this host can't.
    #[command(after_help = "\
The last line is `N passed, N failed, N skipped`.

Examples:
  cargo xtask e2e
  cargo xtask e2e network::
  cargo xtask e2e --vmm ./firecracker run::
  cargo xtask e2e --kernel \"$(cargo xtask kernel)\" kernel::")]
    E2e(E2eArgs),
    /// Runs benchmarks, each figure beside its baseline.
    #[command(after_help = "\
Examples:
  cargo xtask bench
  cargo xtask bench boot --vmm ./firecracker --json boot.json")]
    Bench(BenchArgs),
    /// Format, lints, documentation, layers, unused dependencies, licences, sources.
    #[command(after_help = "\
Examples:
  cargo xtask check
  cargo xtask check layers licences")]
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// Say what is missing and change nothing.
    #[arg(long)]
    pub(crate) plan: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KernelArgs {
    /// Say what is missing and change nothing.
    #[arg(long)]
    pub(crate) plan: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {}

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Leave the end-to-end suite out. It is then not counted at all.
    #[arg(long)]
    pub(crate) no_e2e: bool,
}

#[derive(Debug, Args)]
pub(crate) struct E2eArgs {
    /// A program that speaks the Firecracker API, in place of wrenn-vmm.
    #[arg(long, value_name = "PATH")]
    pub(crate) vmm: Option<PathBuf>,
    /// A kernel that `cargo xtask kernel` has built: runs the tests that need one, too.
    #[arg(long, value_name = "ID")]
    pub(crate) kernel: Option<String>,
    /// Only tests whose name contains this: `run::`, `guest::`, `network::`.
    pub(crate) filter: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The benchmark, all of them if absent: `boot`, `exec`, `net`, `dm`, `create`, `files`,
    /// `snapshot`, `pager`, `server`.
    pub(crate) name: Option<String>,
    /// A program that speaks the Firecracker API, measured as a baseline.
    #[arg(long, value_name = "PATH")]
    pub(crate) vmm: Option<PathBuf>,
    /// Write the records to this file as a JSON array.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Only these checks, all if absent.
    #[arg(value_enum)]
    pub(crate) only: Vec<crate::check::Kind>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
