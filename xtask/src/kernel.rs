//! `cargo xtask kernel`: the guest kernel of our own, where virtual machines can run.

use std::process::ExitCode;

use anyhow::Result;

use crate::build::Programs;
use crate::cli::KernelArgs;
use crate::steps::step;
use crate::{process, provision};

/// The kernel's id is all that standard output gets.
pub(crate) fn run(args: &KernelArgs) -> Result<ExitCode> {
    let programs = step("Building programs", Programs::build)?;
    process::run(&mut provision::kernel(&programs, args.plan))?;
    Ok(ExitCode::SUCCESS)
}
