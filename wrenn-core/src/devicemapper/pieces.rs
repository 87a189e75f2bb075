//! What a disk is made of, and the way back.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::{ControlError, Key};
use super::holders::Holders;
use super::loops::{self, LoopDevice};
use super::shared::{Shared, ThreadLost};
use super::table::{DeviceNumber, SnapshotTable};
use crate::SandboxId;

/// How long a removal waits for others to close the device.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the kernel may take to detach a loop that nobody has open.
const DETACH_PATIENCE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long the reaper waits before each further attempt at what failed.
const RETRY_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// Why a disk could not be given back.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum RemoveDiskError {
    #[error("the disk of {id} is held open by {holders}; end them")]
    Busy { id: SandboxId, holders: Holders },
    #[error("cannot remove the disk of {id}")]
    Control {
        id: SandboxId,
        #[source]
        source: ControlError,
    },
    #[error("cannot remove device node {path}")]
    Node {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove the disk of a sandbox")]
    Thread(#[from] ThreadLost),
}

/// What has to be given back, in this order. Plain data: whoever holds it decides when.
#[derive(Debug)]
pub(super) struct Pieces {
    pub(super) id: SandboxId,
    pub(super) number: DeviceNumber,
    pub(super) table: SnapshotTable,
    pub(super) store: LoopDevice,
    pub(super) base: Arc<LoopDevice>,
}

impl Pieces {
    /// Removes everything. What could not be removed comes back with the reason. Blocks.
    pub(super) fn tear_down(
        self: Box<Self>,
        shared: &Shared,
    ) -> Result<(), (Box<Self>, RemoveDiskError)> {
        let begun = Instant::now();
        if let Err(error) = remove_device(shared, &self.id, self.number, || self.is_ours(shared)) {
            return Err((self, error));
        }
        let name = self.id.as_str();
        if let Err(source) = shared.nodes().remove(name, self.number) {
            let path = shared.nodes().path_of(name);
            return Err((self, RemoveDiskError::Node { path, source }));
        }
        let Self {
            id, store, base, ..
        } = *self;
        let (number, path) = (store.number(), store.path().to_owned());
        drop(store);
        drop(base);
        // Nobody but the dm device and us had the store's. A program that looks at every
        // new block device may have it open for a moment.
        let deadline = Instant::now() + DETACH_PATIENCE;
        let mut pause = FIRST_PAUSE;
        while loops::backing_path(number).is_some_and(|backing| backing == path) {
            if Instant::now() > deadline {
                // There is nothing that a reaper could do: the kernel detaches it.
                let holders = Holders::of(number);
                tracing::warn!(sandbox_id = %id, %number, %holders, "a loop device is still attached");
                break;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        tracing::debug!(sandbox_id = %id, elapsed = ?begun.elapsed(), "disk removed");
        Ok(())
    }

    /// Whether the device of our name is still the one that we made: the loops below it
    /// are held open here, so nobody else can have a device on them.
    fn is_ours(&self, shared: &Shared) -> Result<bool, ControlError> {
        let uuid = shared.uuid(&self.id);
        let Some(state) = shared.control().find(Key::Uuid(&uuid))? else {
            return Ok(false);
        };
        if state.number != self.number {
            return Ok(false);
        }
        if !state.active {
            // It was made, and got no further.
            return Ok(true);
        }
        match shared.control().table(&uuid) {
            Ok(line) => Ok(line.text.parse::<SnapshotTable>().is_ok_and(|table| {
                (table.origin, table.store) == (self.table.origin, self.table.store)
            })),
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Removes a dm device, waiting for others to close it. Blocks.
///
/// `is_ours` is asked before each attempt: names and numbers are used again.
pub(super) fn remove_device(
    shared: &Shared,
    id: &SandboxId,
    number: DeviceNumber,
    is_ours: impl Fn() -> Result<bool, ControlError>,
) -> Result<(), RemoveDiskError> {
    let failed = |source| RemoveDiskError::Control {
        id: id.clone(),
        source,
    };
    let uuid = shared.uuid(id);
    let deadline = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    while is_ours().map_err(failed)? {
        match shared.control().remove(&uuid) {
            Ok(()) => return Ok(()),
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) if error.is_busy() => {}
            Err(error) => return Err(failed(error)),
        }
        if Instant::now() > deadline {
            return Err(RemoveDiskError::Busy {
                id: id.clone(),
                holders: Holders::of(number),
            });
        }
        // A process that was just killed closes what it had after a moment, and that is
        // not worth a word.
        if !told && pause >= LONGEST_PAUSE {
            let holders = Holders::of(number);
            tracing::warn!(sandbox_id = %id, %holders, "a disk is still open; waiting");
            told = true;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// Gives a disk back in the background: tries, logs, and in the end asks the kernel to
/// remove it when it is closed.
pub(super) fn retire(shared: Arc<Shared>, pieces: Box<Pieces>) {
    let busy = shared.count_busy();
    let id = pieces.id.clone();
    let spawned = std::thread::Builder::new()
        .name("wrenn-reaper".into())
        .spawn(move || {
            let _counted_until_done = busy;
            let mut pieces = pieces;
            let mut pauses = RETRY_AFTER.into_iter();
            loop {
                let (kept, error) = match pieces.tear_down(&shared) {
                    Ok(()) => return,
                    Err(failed) => failed,
                };
                let error = &error as &dyn std::error::Error;
                let Some(pause) = pauses.next() else {
                    tracing::error!(sandbox_id = %kept.id, error,
                        "a disk stays until it is closed; then the kernel removes it");
                    leave_to_kernel(&shared, &kept);
                    return;
                };
                tracing::warn!(sandbox_id = %kept.id, error, "a disk could not be removed; trying again");
                pieces = kept;
                std::thread::sleep(pause);
            }
        });
    if let Err(error) = spawned {
        // The loops were closed with the closure; the device is what a sweep finds.
        tracing::error!(sandbox_id = %id, %error, "no thread to remove a disk; left to the next sweep");
    }
}

fn leave_to_kernel(shared: &Shared, pieces: &Pieces) {
    let left = pieces.is_ours(shared).and_then(|ours| {
        if ours {
            shared.control().remove_later(&shared.uuid(&pieces.id))
        } else {
            Ok(())
        }
    });
    if let Err(error) = left {
        let error = &error as &dyn std::error::Error;
        tracing::error!(sandbox_id = %pieces.id, error, "a disk is left to the next sweep");
    }
}
