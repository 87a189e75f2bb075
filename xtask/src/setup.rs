//! `cargo xtask setup`: everything that the rest needs, built or installed once.

use std::process::ExitCode;

use anyhow::Result;

use crate::build::Programs;
use crate::cli::SetupArgs;
use crate::steps::step;
use crate::{process, provision};

pub(crate) fn run(args: &SetupArgs) -> Result<ExitCode> {
    provide(args.plan)?;
    Ok(ExitCode::SUCCESS)
}

/// Does the whole set-up and returns the programs, for commands that build on it.
pub(crate) fn ensure() -> Result<Programs> {
    provide(false)
}

fn provide(plan_only: bool) -> Result<Programs> {
    let programs = step("Building programs", Programs::build)?;
    process::run(&mut provision::setup(&programs, plan_only))?;
    Ok(programs)
}
