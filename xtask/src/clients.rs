//! The test suite of an existing client, unmodified, against our guest daemon: once on this
//! host, once in a microVM. The suite is in `wrenn-envd/tests/e2b/`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build::{self, Programs};
use crate::provision;
use crate::steps::step;
use crate::tally::Tally;
use crate::workspace::Workspace;
use crate::{process, tests};

const SUITE: &str = "wrenn-envd/tests/e2b";

/// Against the daemon as a process of this host.
pub(crate) fn on_this_host(programs: &Programs) -> Result<Tally> {
    let suite = suite()?;
    let client = client(&suite)?;
    step("Existing client, daemon on this host", || {
        let mut command = process::command(suite.join("native.sh"));
        command.arg(&programs.envd);
        command
            .env("WRENN_SUITE_PYTHON", "python3")
            .env("PYTHONPATH", client);
        tests::counted(&mut command)
    })
}

/// Against the daemon of a microVM.
pub(crate) fn in_microvm(programs: &Programs, vmm: Option<&Path>) -> Result<Tally> {
    let suite = suite()?;
    let client = client(&suite)?;
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
        command
            .arg("python3")
            .arg(suite.join("run.py"))
            .env("PYTHONPATH", client);
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
