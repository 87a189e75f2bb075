//! Where microVMs run: on this host, or in the machine.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use wrenn_images::Cache;
use wrenn_machine::{
    Machine, MachineClient, MachineConfig, MachineName, MachineNetwork, Programs, host,
};

use crate::report::Report;

/// Where microVMs run.
#[derive(Debug)]
pub(crate) enum Place {
    /// This host: an ordinary guest boots under its KVM, and all else is there.
    Host,
    /// The machine, which runs.
    Machine(Box<MachineClient>),
}

/// Our programs, which one build leaves side by side.
pub(crate) fn programs() -> Result<Programs> {
    Programs::beside_this_program()
        .map_err(|missing| anyhow!("there is no {}: run `cargo xtask setup`", missing.display()))
}

/// Whether microVMs can run on this host. `root` is where their files would lie.
pub(crate) async fn host_can(root: &Path, programs: &Programs, report: &Report) -> Result<bool> {
    let cache = Cache::of_user()?;
    host::runs_sandboxes(root, &cache, programs, report)
        .await
        .context("cannot find out what this host can run")
}

/// Chooses the place, and builds and starts the machine where it is the machine.
pub(crate) async fn ready(root: &Path, report: &Arc<Report>) -> Result<Place> {
    let programs = programs()?;
    if host_can(root, &programs, report).await? {
        return Ok(Place::Host);
    }
    let machine = Machine::of_user(&MachineName::default())?;
    let config = MachineConfig {
        // Tests reach nothing outside.
        network: Some(MachineNetwork::Closed),
        ..MachineConfig::default()
    };
    let running = machine
        .start(&config, &programs, report.clone())
        .await
        .context("cannot start the machine")?;
    Ok(Place::Machine(Box::new(running.client()?)))
}
