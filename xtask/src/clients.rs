//! The test suite of an existing client, unmodified, against the guest daemon in a microVM.
//!
//! The suite is in `wrenn-envd/tests/e2b/`. A test of wrenn-envd runs it against a daemon on
//! this host as well, with the client that is installed here.

use std::path::Path;

use anyhow::Result;

use crate::build::Programs;
use crate::provision;
use crate::steps::step;
use crate::tally::Tally;
use crate::workspace::Workspace;
use crate::{process, tests};

const SUITE: &str = "wrenn-envd/tests/e2b";

/// Against the daemon of a microVM.
pub(crate) fn in_microvm(programs: &Programs, vmm: Option<&Path>) -> Result<Tally> {
    let suite = Workspace::load()?.workspace_root.join(SUITE);
    let python = python(&suite)?;
    step("Existing client, daemon in a microVM", || {
        let vmm = vmm.unwrap_or(&programs.vmm);
        let mut command = provision::clients(programs, vmm);
        command.arg(&python).arg(suite.join("run.py"));
        tests::counted(&mut command)
    })
}

/// The interpreter that has the client, which is installed if need be.
fn python(suite: &Path) -> Result<String> {
    step("Installing the existing client", || {
        let python = process::output(&mut process::command(suite.join("client.sh")))?;
        Ok(python.trim_end().to_owned())
    })
}
