//! Slots that are made before somebody needs them.
//!
//! ```text
//!         room: one permit for each slot that is missing
//!  ┌─────────────────────────────────────────────────────┐
//!  ▼                                                     │
//! makers ── create_slot("pool") ──▶ ready ── take ── relabel(owner) ──▶ NetworkSlot
//!    └ failed: log, wait longer each time                  └ none ready: made on demand
//! ```
//!
//! A slot that waits belongs to [`POOL_OWNER`], so that the next start after a crash can
//! tell it from those of running VMs and sweeps it.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::Network;
use super::slot::{CreateSlotError, NetworkSlot, RemoveSlotError};
use crate::Chain;

/// Whose a slot is until somebody takes it.
pub const POOL_OWNER: &str = "pool";

/// How long a maker waits after its first failure, and at most after many.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How many slots are given back at the same time. The kernel mostly waits, for all of
/// them at once.
const PARALLEL_REMOVALS: usize = 16;

/// How many slots wait, and how they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// How many slots are kept ready. With 0, each is made on demand.
    pub size: usize,
    /// How many are made at the same time.
    pub makers: NonZeroUsize,
}

impl Default for PoolConfig {
    /// Eight slots, made by two.
    fn default() -> Self {
        Self {
            size: 8,
            makers: NonZeroUsize::MIN.saturating_add(1),
        }
    }
}

/// Keeps slots ready. To be drained before the process ends; dropped without, it gives its
/// slots back in the background.
#[derive(Debug)]
pub struct SlotPool {
    shelf: Arc<Shelf>,
    makers: TaskTracker,
    stop: CancellationToken,
    _stopped_when_dropped: DropGuard,
}

#[derive(Debug)]
struct Shelf {
    network: Network,
    /// The one that has waited longest is at the front.
    ready: Mutex<VecDeque<NetworkSlot>>,
    room: Semaphore,
}

impl SlotPool {
    /// Begins to make slots. Must be called in a tokio runtime.
    #[must_use]
    pub fn start(network: Network, config: PoolConfig) -> Self {
        let shelf = Arc::new(Shelf {
            network,
            ready: Mutex::default(),
            room: Semaphore::new(config.size),
        });
        let (makers, stop) = (TaskTracker::new(), CancellationToken::new());
        for _ in 0..config.makers.get().min(config.size) {
            makers.spawn(make_ahead(Arc::clone(&shelf), stop.clone()));
        }
        Self {
            shelf,
            makers,
            _stopped_when_dropped: stop.clone().drop_guard(),
            stop,
        }
    }

    /// Gives a slot to `owner`: one that is ready, or else one that is made now.
    ///
    /// # Errors
    /// When none was ready and none could be made.
    ///
    /// # Cancel safety
    /// A slot whose future was dropped is given back.
    pub async fn take(&self, owner: &str) -> Result<NetworkSlot, CreateSlotError> {
        while let Some((slot, _gap)) = self.shelf.pop() {
            let number = slot.number();
            match slot.relabel(owner).await {
                Ok(slot) => return Ok(slot),
                // It is given back as it is dropped; the next one may be better.
                Err(error) => {
                    let error = Chain(&error).to_string();
                    tracing::warn!(slot = %number, error, "a slot that was made ahead is no good");
                }
            }
        }
        self.shelf.network.create_slot(owner).await
    }

    /// How many slots are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.shelf.lock().len()
    }

    /// Stops making slots and gives back those that are ready. Afterwards each slot is made
    /// on demand.
    ///
    /// # Errors
    /// With the first slot that could not be given back; a reaper goes on trying, and the
    /// others are given back all the same.
    ///
    /// # Cancel safety
    /// Slots that are not given back by then are so by a later call, or when the pool is
    /// dropped.
    pub async fn drain(&self) -> Result<(), RemoveSlotError> {
        self.stop.cancel();
        self.makers.close();
        self.makers.wait().await;
        let removals =
            std::iter::from_fn(|| self.shelf.lock().pop_front()).map(NetworkSlot::remove);
        stream::iter(removals)
            .buffer_unordered(PARALLEL_REMOVALS)
            .fold(Ok(()), async |first, result| first.and(result))
            .await
    }
}

impl Shelf {
    /// Takes a slot, and the gap that it leaves.
    fn pop(&self) -> Option<(NetworkSlot, Gap<'_>)> {
        let slot = self.lock().pop_front()?;
        Some((slot, Gap(&self.room)))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<NetworkSlot>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for another slot as soon as this is dropped. Not before the one that left it is in
/// its new owner's hands: making a slot would hold up handing one over.
struct Gap<'a>(&'a Semaphore);

impl Drop for Gap<'_> {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

/// Makes a slot wherever there is room, until it is told to stop. What it has begun by then
/// it finishes.
async fn make_ahead(shelf: Arc<Shelf>, stop: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    loop {
        let room = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            room = shelf.room.acquire() => room,
        };
        let Ok(room) = room else { return };
        match shelf.network.create_slot(POOL_OWNER).await {
            Ok(slot) => {
                // The gap that the slot leaves one day gives the permit back.
                room.forget();
                shelf.lock().push_back(slot);
                pause = FIRST_PAUSE;
            }
            Err(error) => {
                drop(room);
                let error = Chain(&error).to_string();
                tracing::warn!(error, again_in = ?pause, "cannot make a network slot ahead");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
    }
}
