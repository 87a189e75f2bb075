//! From one process to everybody who follows it. See the module above for the picture.
//!
//! All output goes through the ring. A follower is a position in it, so what it took stays
//! there until it is overwritten, and a client that lost its connection can go back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::End;
use super::ring::{BLOCK, Ring};

/// How far a follower may be behind before the process waits for it, in bytes: what is on its
/// way to it inside of this program.
pub const WINDOW: u64 = 256 * 1024;

/// The most that one chunk holds.
pub const CHUNK: usize = 32 * 1024;

/// The most that one ring takes, in bytes.
pub const RING_LIMIT: usize = 4 * 1024 * 1024;

/// Bytes that a ring may take however many others there are.
const RING_FLOOR: usize = 4 * BLOCK;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    Stdout,
    Stderr,
    Pty,
}

impl Channel {
    pub(super) const COUNT: usize = 3;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub channel: Channel,
    /// Where its first byte stands in the channel.
    pub offset: u64,
    pub bytes: Bytes,
}

/// What a follower meets, in this order: any number of chunks, then one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    Output(Chunk),
    Ended(End),
}

/// How much of each channel a client has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets {
    pub stdout: u64,
    pub stderr: u64,
    pub pty: u64,
}

impl Offsets {
    fn of(self, channel: Channel) -> u64 {
        match channel {
            Channel::Stdout => self.stdout,
            Channel::Stderr => self.stderr,
            Channel::Pty => self.pty,
        }
    }
}

/// Bytes that all rings of a daemon may take together. Beyond it, rings shrink that take more
/// than their equal share.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
    hubs: Mutex<Vec<Weak<Hub>>>,
}

impl Budget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            hubs: Mutex::default(),
        })
    }

    /// A sixteenth of the guest's memory, but one whole ring at least.
    pub fn of_this_guest() -> Arc<Self> {
        let info = rustix::system::sysinfo();
        let unit = u64::from(info.mem_unit.max(1));
        let memory = usize::try_from(info.totalram * unit).unwrap_or(usize::MAX);
        Self::new((memory / 16).max(RING_LIMIT))
    }

    /// Bytes that all rings take now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn hubs(&self) -> MutexGuard<'_, Vec<Weak<Hub>>> {
        self.hubs
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Has rings give up what is beyond their share.
    fn reclaim(&self) {
        let hubs: Vec<_> = {
            let mut hubs = self.hubs();
            hubs.retain(|hub| hub.strong_count() > 0);
            hubs.iter().filter_map(Weak::upgrade).collect()
        };
        let share = (self.limit / hubs.len().max(1)).max(RING_FLOOR);
        for hub in hubs {
            if self.used() <= self.limit {
                return;
            }
            hub.state().shrink(share);
        }
    }
}

#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    budget: Arc<Budget>,
    grace: Duration,
    /// Something came, or the end.
    news: Notify,
    /// A follower took something, or left.
    room: Notify,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    /// Where each follower stands.
    followers: HashMap<u64, u64>,
    next_follower: u64,
    /// The place of the last follower, for a while after it left.
    vacated: Option<Vacated>,
    /// The furthest that any follower ever was.
    sent: u64,
    end: Option<End>,
    /// Bytes of the ring that the budget counts.
    counted: usize,
    budget: Arc<Budget>,
}

/// Where a follower stood that left, and how long the process waits for its client.
#[derive(Debug, Clone, Copy)]
struct Vacated {
    position: u64,
    until: Instant,
}

impl State {
    /// Where the last of the followers stands, or stood until a moment ago.
    fn slowest(&self) -> Option<u64> {
        let slowest = self.followers.values().min().copied();
        slowest.or_else(|| {
            let vacated = self.vacated.filter(|place| Instant::now() < place.until);
            vacated.map(|place| place.position)
        })
    }

    fn has_room(&self) -> bool {
        self.slowest()
            .is_none_or(|slowest| self.ring.end().saturating_sub(slowest) < WINDOW)
    }

    /// Frees what is beyond `limit` and nobody waits for.
    fn shrink(&mut self, limit: usize) {
        let needed = self.slowest().unwrap_or(self.ring.end());
        self.ring.shrink(limit, needed);
        self.count();
    }

    fn count(&mut self) {
        let weight = self.ring.weight();
        self.budget.used.fetch_add(weight, Ordering::Relaxed);
        self.budget.used.fetch_sub(self.counted, Ordering::Relaxed);
        self.counted = weight;
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl Hub {
    /// `grace` is how long it waits for a client that lost its connection.
    pub fn new(budget: &Arc<Budget>, grace: Duration) -> Arc<Self> {
        let hub = Arc::new(Self {
            state: Mutex::new(State {
                ring: Ring::default(),
                followers: HashMap::new(),
                next_follower: 0,
                vacated: None,
                sent: 0,
                end: None,
                counted: 0,
                budget: Arc::clone(budget),
            }),
            budget: Arc::clone(budget),
            grace,
            news: Notify::new(),
            room: Notify::new(),
        });
        let mut hubs = budget.hubs();
        hubs.retain(|hub| hub.strong_count() > 0);
        hubs.push(Arc::downgrade(&hub));
        drop(hubs);
        hub
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until no follower is too far behind, and keeps the bytes for all of them.
    ///
    /// # Cancel safety
    /// Cancel safe: either all of the bytes were kept or none.
    pub async fn publish(&self, channel: Channel, bytes: &[u8]) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // From here on nothing is missed.
            room.as_mut().enable();
            let vacated = {
                let mut state = self.state();
                if state.has_room() {
                    state.ring.push(channel, bytes);
                    state.shrink(RING_LIMIT);
                    break;
                }
                state.vacated
            };
            match vacated {
                // Either way it is looked again.
                Some(place) => timeout_at(place.until, room).await.unwrap_or_default(),
                None => room.await,
            }
        }
        if self.budget.used() > self.budget.limit {
            self.budget.reclaim();
        }
        self.news.notify_waiters();
    }

    /// Follows from the first byte that was not sent to any follower, or from where a client
    /// left off. Bytes that are no longer kept are left out, which the offsets show.
    pub fn follow(self: &Arc<Self>, from: Option<Offsets>) -> Follower {
        let mut state = self.state();
        let position = match from {
            Some(_) => state.ring.first(),
            None => state.sent.max(state.ring.first()),
        };
        let id = state.next_follower;
        state.next_follower += 1;
        state.followers.insert(id, position);
        state.vacated = None;
        // A client has no bytes that have not come yet.
        let from = from.map(|from| Offsets {
            stdout: from.stdout.min(state.ring.written(Channel::Stdout)),
            stderr: from.stderr.min(state.ring.written(Channel::Stderr)),
            pty: from.pty.min(state.ring.written(Channel::Pty)),
        });
        Follower {
            id,
            from: from.unwrap_or_default(),
            hub: Arc::clone(self),
            done: false,
        }
    }

    /// Waits until the last follower has left and its client has not come back in time.
    pub async fn abandoned(&self) {
        loop {
            let mut moved = std::pin::pin!(self.room.notified());
            // From here on nothing is missed.
            moved.as_mut().enable();
            let until = {
                let state = self.state();
                state.vacated.map(|place| place.until)
            };
            match until {
                Some(until) if until <= Instant::now() => return,
                // Either way it is looked again: a client may have come back.
                Some(until) => timeout_at(until, moved).await.unwrap_or_default(),
                None => moved.await,
            }
        }
    }

    /// Ends every stream once it has taken what is on its way. Called once, after the
    /// last [`Hub::publish`] returned.
    pub fn finish(&self, end: End) {
        {
            let mut state = self.state();
            debug_assert!(state.end.is_none(), "a process ends once");
            state.end = Some(end);
        }
        self.news.notify_waiters();
    }
}

/// One stream's view of a process.
#[derive(Debug)]
pub struct Follower {
    id: u64,
    /// The bytes that its client has already.
    from: Offsets,
    hub: Arc<Hub>,
    done: bool,
}

impl Follower {
    /// The next thing, or `None` after the end.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is taken unless it is returned.
    pub async fn next(&mut self) -> Option<Followed> {
        if self.done {
            return None;
        }
        loop {
            let mut news = std::pin::pin!(self.hub.news.notified());
            // From here on nothing is missed.
            news.as_mut().enable();
            if let Some(followed) = self.take() {
                self.done = matches!(followed, Followed::Ended(_));
                return Some(followed);
            }
            news.await;
        }
    }

    /// The next event, if it is there already.
    fn take(&self) -> Option<Followed> {
        let mut guard = self.hub.state();
        let state = &mut *guard;
        let position = state.followers.get_mut(&self.id)?;
        let before = *position;
        let mut taken = None;
        while let Some((start, mut chunk)) = state.ring.read(*position, CHUNK) {
            *position = start + chunk.bytes.len() as u64;
            let known = self.from.of(chunk.channel).saturating_sub(chunk.offset);
            let known = usize::try_from(known)
                .map_or(chunk.bytes.len(), |known| known.min(chunk.bytes.len()));
            if known < chunk.bytes.len() {
                chunk.offset += known as u64;
                chunk.bytes = chunk.bytes.split_off(known);
                taken = Some(Followed::Output(chunk));
                break;
            }
        }
        let moved = *position != before;
        state.sent = state.sent.max(*position);
        let followed = taken.or_else(|| state.end.clone().map(Followed::Ended));
        drop(guard);
        if moved {
            self.hub.room.notify_waiters();
        }
        followed
    }
}

impl Drop for Follower {
    /// A process does not wait for a follower that is gone, but a while for the last one.
    fn drop(&mut self) {
        let mut state = self.hub.state();
        let position = state.followers.remove(&self.id);
        if let Some(position) = position
            && state.followers.is_empty()
        {
            let until = Instant::now() + self.hub.grace;
            state.vacated = Some(Vacated { position, until });
        }
        drop(state);
        self.hub.room.notify_waiters();
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
