//! What all disks of a root directory share.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::control::Control;
use super::disk::DiskStatusError;
use super::loops::Loops;
use super::node::Nodes;
use super::table::StoreStatus;
use crate::SandboxId;

/// With which the names of all our devices begin.
pub(super) const NAME_PREFIX: &str = "wrenn-";
const UUID_PREFIX: &str = "WRENN-";

/// A thread that did blocking work panicked.
#[derive(Debug, thiserror::Error)]
#[error("a worker thread died")]
pub struct ThreadLost;

/// What tells the devices of one root directory from those of another on the same host:
/// twelve hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RootIdentity(String);

impl RootIdentity {
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(root)?;
        Ok(Self::from_numbers(metadata.dev(), metadata.ino()))
    }

    /// FNV-1a over the directory's device and inode, folded to six bytes.
    fn from_numbers(device: u64, inode: u64) -> Self {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in device.to_le_bytes().into_iter().chain(inode.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let folded = (hash ^ (hash >> 48)) & 0xffff_ffff_ffff;
        Self(format!("{folded:012x}"))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The UUID of a sandbox's device: `WRENN-<root identity>-<sandbox id>`.
    pub(super) fn uuid(&self, id: &SandboxId) -> String {
        format!("{UUID_PREFIX}{}-{id}", self.0)
    }

    /// The sandbox whose device has this UUID, if it belongs to this root directory.
    pub(super) fn sandbox_of(&self, uuid: &str) -> Option<SandboxId> {
        uuid.strip_prefix(UUID_PREFIX)?
            .strip_prefix(self.as_str())?
            .strip_prefix('-')?
            .parse()
            .ok()
    }
}

/// The host as seen by its disks.
#[derive(Debug)]
pub(super) struct Shared {
    identity: RootIdentity,
    control: Control,
    loops: Loops,
    nodes: Nodes,
    /// How many disks are being made or given back right now.
    busy: watch::Sender<usize>,
}

impl Shared {
    pub(super) fn new(identity: RootIdentity, control: Control, loop_control: File) -> Self {
        let nodes = Nodes::new(identity.as_str());
        Self {
            loops: Loops::new(loop_control, nodes.clone()),
            nodes,
            identity,
            control,
            busy: watch::Sender::new(0),
        }
    }

    pub(super) fn identity(&self) -> &RootIdentity {
        &self.identity
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    pub(super) fn loops(&self) -> &Loops {
        &self.loops
    }

    pub(super) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The name of a sandbox's device: `wrenn-<sandbox id>`.
    pub(super) fn name(&self, id: &SandboxId) -> String {
        format!("{NAME_PREFIX}{id}")
    }

    pub(super) fn uuid(&self, id: &SandboxId) -> String {
        self.identity.uuid(id)
    }

    pub(super) fn status(&self, id: &SandboxId) -> Result<StoreStatus, DiskStatusError> {
        let line = self.control.status(&self.uuid(id))?;
        Ok(line.text.parse()?)
    }

    /// Counts a disk as being made or given back until the result is dropped.
    pub(super) fn count_busy(self: &Arc<Self>) -> Busy {
        self.busy.send_modify(|count| *count += 1);
        Busy(Arc::clone(self))
    }

    /// Waits until no disk is being made or given back.
    pub(super) async fn settled(&self) {
        let mut busy = self.busy.subscribe();
        // Waiting fails only when the sender is gone, and that is ours.
        drop(busy.wait_for(|count| *count == 0).await);
    }
}

/// A disk that is being made or given back.
pub(super) struct Busy(Arc<Shared>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.send_modify(|count| *count -= 1);
    }
}

/// Runs work that blocks on a thread for it. Goes on if nobody waits any more.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ThreadLost> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(|_| ThreadLost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_uuid_names_its_sandbox_in_its_own_root_only(numbers in any::<[u64; 4]>()) {
            let [a, b, c, d] = numbers;
            let (ours, theirs) = (RootIdentity::from_numbers(a, b), RootIdentity::from_numbers(c, d));
            let id = SandboxId::random();
            let uuid = ours.uuid(&id);
            prop_assert!(uuid.len() < 129, "{} is too long for the kernel", uuid);
            prop_assert_eq!(ours.as_str().len(), 12);
            prop_assert_eq!(ours.sandbox_of(&uuid), Some(id));
            if ours != theirs {
                prop_assert_eq!(theirs.sandbox_of(&uuid), None);
            }
        }

        #[test]
        fn other_uuids_name_nobody(uuid in ".{0,60}") {
            prop_assert_eq!(RootIdentity::from_numbers(1, 2).sandbox_of(&uuid), None);
        }
    }
}
