//! `cargo xtask e2e`: the end-to-end suite, where virtual machines can run.
//!
//! The suite is an ordinary test program. It goes into the machine as it is, since all
//! our programs are static, and finds `wrenn`, the agent and the VMM by environment variables.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use crate::build::{self, Programs};
use crate::cli::E2eArgs;
use crate::provision::Run;
use crate::steps::{say, step};
use crate::tally::Tally;
use crate::{process, setup, tests};

/// Variables by which people ask for more than a suite can bear that runs where everything is
/// emulated, or to see more of it; they reach the machine, too.
const PASSED_ON: [&str; 6] = [
    "WRENN_E2E_KILLS",
    "WRENN_E2E_CYCLES",
    "WRENN_E2E_MEMORY_MIB",
    "WRENN_E2E_SPAWNS",
    "WRENN_E2E_FILE_MIB",
    // Shows what tests print that pass.
    "RUST_TEST_NOCAPTURE",
];

pub(crate) fn run(args: &E2eArgs) -> Result<ExitCode> {
    let vmm = args.vmm.as_deref().map(build::given).transpose()?;
    let programs = setup::ensure()?;
    let chosen = Chosen {
        vmm: vmm.as_deref(),
        kernel: args.kernel.as_deref(),
        filter: args.filter.as_deref(),
    };
    let tally = suite(&programs, &chosen)?;
    say(tally);
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

const DISK_BYTES: u64 = 16 << 20;

/// What of the suite is run, and on what; all of it, as it comes, by default.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Chosen<'a> {
    pub(crate) vmm: Option<&'a Path>,
    pub(crate) kernel: Option<&'a str>,
    pub(crate) filter: Option<&'a str>,
}

/// Builds and runs the suite, with its output on standard error.
pub(crate) fn suite(programs: &Programs, chosen: &Chosen<'_>) -> Result<Tally> {
    let program = step("Building the end-to-end suite", || {
        let mut cargo = build::optimised(&["test", "--no-run", "--release", "--test", "e2e"]);
        build::find(&build::executables(&mut cargo)?, "e2e")
    })?;
    let disk = empty_disk(&program)?;
    step("End-to-end tests", || {
        let mut run = Run::new(program)
            .file("WRENN_E2E_DISK", &disk)
            .file("WRENN_E2E_WRENN", &programs.wrenn)
            .file("WRENN_E2E_AGENT", &programs.agent)
            .file("WRENN_PAGER", &programs.pager)
            .file("WRENN_VMM", chosen.vmm.unwrap_or(&programs.vmm))
            .pass_on(&PASSED_ON);
        if let Some(kernel) = chosen.kernel {
            // What needs a kernel of our own counts as skipped otherwise.
            run = run
                .variable("WRENN_E2E_KERNEL", kernel)
                .argument("--include-ignored");
        }
        if let Some(filter) = chosen.filter {
            run = run.argument(filter);
        }
        tests::counted(&mut run.command(programs))
    })
}

/// Makes a file system with a journal, beside the suite's program. It is small, and grows where
/// it is mounted: the machine has no program that makes one.
fn empty_disk(program: &Path) -> Result<PathBuf> {
    let disk = program.with_extension("ext4");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    let mut mke2fs = process::command("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]);
    // Zeroed at once, or the kernel goes on with it after the mount.
    mke2fs.args([
        "-J",
        "size=4",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
    ]);
    process::run(mke2fs.arg(&disk))?;
    Ok(disk)
}
