//! Finding and removing the disks that nobody owns any more.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use super::control::{Control, ControlError, DeviceState, Key};
use super::loops;
use super::node::Nodes;
use super::pieces::remove_device;
use super::shared::{NAME_PREFIX, RootIdentity, Shared, ThreadLost};
use crate::{RootDirectory, SandboxId};

/// Why the host could not be searched for disks.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum SweepError {
    #[error("cannot list the host's disks")]
    Control(#[from] ControlError),
    #[error("cannot list {path}")]
    List {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot search for disks")]
    Thread(#[from] ThreadLost),
}

/// Everything on a host that belongs to the disks of one root directory, in use or left
/// behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Sandboxes that have a dm device.
    pub disks: Vec<SandboxId>,
    /// Loop devices with a file below the root directory, and the file.
    pub loops: Vec<(String, PathBuf)>,
    /// Device nodes.
    pub nodes: Vec<PathBuf>,
}

impl Leftovers {
    /// Whether there is nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Lists what there is, also on hosts without a device mapper, where there is nothing.
/// Blocks.
///
/// # Errors
/// When the host cannot be searched.
pub(crate) fn leftovers_of(root: &RootDirectory) -> Result<Leftovers, SweepError> {
    let root = root.path();
    let unlisted = |path: &Path| {
        let path = path.to_owned();
        |source| SweepError::List { path, source }
    };
    let canonical = match root.canonicalize() {
        Ok(canonical) => canonical,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leftovers::default()),
        Err(error) => return Err(unlisted(root)(error)),
    };
    let identity = RootIdentity::of(root).map_err(unlisted(root))?;
    let nodes = Nodes::new(identity.as_str());
    let names = nodes.list().map_err(unlisted(&nodes.path_of("")))?;
    let devices = match Control::open() {
        Ok(control) => devices(&control, &identity)?,
        // No device mapper, no devices.
        Err(_) => Vec::new(),
    };
    let loops = match loops::list_below(&canonical) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        listed => listed.map_err(unlisted(Path::new("/sys/block")))?,
    };
    Ok(Leftovers {
        disks: devices.into_iter().map(|(id, _)| id).collect(),
        loops: loops
            .into_iter()
            .map(|(number, path)| (format!("loop{}", number.minor), path))
            .collect(),
        nodes: names.iter().map(|name| nodes.path_of(name)).collect(),
    })
}

/// Removes the disks of sandboxes that are not in use, and nodes without a disk. Loops need
/// no sweep: they end with the last device above them. Blocks.
pub(super) fn sweep(
    shared: &Shared,
    in_use: impl Fn(&SandboxId) -> bool,
) -> Result<Vec<SandboxId>, SweepError> {
    // Nodes first: a device gets its node last, so one without a device in the later list
    // is nobody's, unless its device comes right now.
    let names = shared.nodes().list().map_err(|source| SweepError::List {
        path: shared.nodes().path_of(""),
        source,
    })?;
    let devices = devices(shared.control(), shared.identity())?;
    let mut swept = Vec::new();
    for (id, state) in &devices {
        // Asked after the list was made: who makes a disk says first that it does.
        if in_use(id) {
            continue;
        }
        let still_there = || {
            let found = shared.control().find(Key::Uuid(&shared.uuid(id)))?;
            Ok(found.is_some_and(|found| found.number == state.number))
        };
        match remove_device(shared, id, state.number, still_there) {
            Ok(()) => {
                tracing::info!(sandbox_id = %id, "swept the disk of a dead owner");
                swept.push(id.clone());
            }
            // One disk that can't be removed must not keep a host from starting.
            Err(error) => {
                let error = &error as &dyn Error;
                tracing::warn!(sandbox_id = %id, error, "cannot sweep a disk");
                continue;
            }
        }
        remove_node(shared, id.as_str());
    }
    for name in names {
        let known = devices.iter().any(|(id, _)| id.as_str() == name);
        let used = name.parse().is_ok_and(|id| in_use(&id));
        if !known && !used {
            remove_node(shared, &name);
        }
    }
    Ok(swept)
}

fn remove_node(shared: &Shared, name: &str) {
    if let Err(error) = shared.nodes().remove_stale(name) {
        tracing::warn!(name, %error, "cannot sweep a device node");
    }
}

/// The dm devices of one root directory.
fn devices(
    control: &Control,
    identity: &RootIdentity,
) -> Result<Vec<(SandboxId, DeviceState)>, ControlError> {
    let mut found = Vec::new();
    for name in control.names()? {
        if !name.starts_with(NAME_PREFIX) {
            continue;
        }
        // It may be gone by now.
        let Some(state) = control.find(Key::Name(&name))? else {
            continue;
        };
        if let Some(id) = identity.sandbox_of(&state.uuid) {
            found.push((id, state));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}
