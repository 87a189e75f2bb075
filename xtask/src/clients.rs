//! The test suite of an existing client, unmodified, against the guest daemon in a microVM.
//!
//! The suite is in `wrenn-envd/tests/e2b/`. A test of wrenn-envd runs it against a daemon on
//! this host as well, with the client that is installed here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::{self, Programs};
use crate::provision;
use crate::steps::step;
use crate::tally::Tally;
use crate::workspace::Workspace;
use crate::{process, tests};

const SUITE: &str = "wrenn-envd/tests/e2b";

/// Tells a test runner, or the suite itself, where the client is.
pub(crate) fn provide(command: &mut Command) -> Result<()> {
    command
        .env("WRENN_SUITE_PYTHON", "python3")
        .env("PYTHONPATH", client(&suite()?)?);
    Ok(())
}

/// Against the daemon of a microVM.
pub(crate) fn in_microvm(programs: &Programs, vmm: Option<&Path>) -> Result<Tally> {
    let suite = suite()?;
    let expose = step("Building the example that exposes a microVM's port", || {
        let mut cargo = process::cargo();
        cargo.args([
            "build",
            "--package",
            "wrenn-examples",
            "--example",
            "expose_port",
        ]);
        build::find(&build::executables(&mut cargo)?, "expose_port")
    })?;
    step("Existing client, daemon in a microVM", || {
        let vmm = vmm.unwrap_or(&programs.vmm);
        let mut command = provision::clients(programs, &expose, vmm);
        command.arg("python3").arg(suite.join("run.py"));
        provide(&mut command)?;
        tests::counted(&mut command)
    })
}

fn suite() -> Result<PathBuf> {
    Ok(Workspace::load()?.workspace_root.join(SUITE))
}

/// Installs the client into a folder of the build directory, unless the same versions are
/// there already, and returns the folder.
fn client(suite: &Path) -> Result<PathBuf> {
    let list = suite.join("requirements.txt");
    let wanted = std::fs::read(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let folder = Workspace::load()?.target_directory.join("xtask/e2b-client");
    // Written last, so that it vouches for the whole folder.
    let mark = folder.join("installed.txt");
    if std::fs::read(&mark).is_ok_and(|present| present == wanted) {
        return Ok(folder);
    }
    step("Installing the existing client", || {
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        let mut pip = process::command("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--root-user-action=ignore",
            "--target",
        ]);
        pip.arg(&folder).arg("--requirement").arg(&list);
        process::run(&mut pip)?;
        std::fs::write(&mark, &wanted).with_context(|| format!("cannot write {}", mark.display()))
    })?;
    Ok(folder)
}
