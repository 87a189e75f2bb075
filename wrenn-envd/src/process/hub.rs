//! From one process to everybody who follows it. See the module above for the picture.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::End;

/// Chunks that may be on their way to one follower.
const IN_FLIGHT: usize = 8;

/// How much output is kept for the next follower while nobody follows.
pub const BACKLOG_LIMIT: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    Stdout,
    Stderr,
    Pty,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub channel: Channel,
    pub bytes: Bytes,
}

/// What a follower meets, in this order: any number of chunks, then one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    Output(Chunk),
    Ended(End),
}

#[derive(Debug, Default)]
pub struct Hub {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    followers: Vec<mpsc::Sender<Chunk>>,
    backlog: VecDeque<Chunk>,
    backlog_bytes: usize,
    end: Option<End>,
}

/// What a chunk counts for in the backlog: a flood of single bytes has a price too.
fn weight(chunk: &Chunk) -> usize {
    chunk.bytes.len() + size_of::<Chunk>()
}

impl State {
    fn keep(&mut self, chunk: Chunk) {
        self.backlog_bytes += weight(&chunk);
        self.backlog.push_back(chunk);
        while self.backlog_bytes > BACKLOG_LIMIT {
            match self.backlog.pop_front() {
                Some(oldest) => self.backlog_bytes -= weight(&oldest),
                None => break,
            }
        }
    }
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Hands a chunk to every follower and waits until each has room for it. With no
    /// follower it is kept.
    ///
    /// # Cancel safety
    /// Not cancel safe: a chunk may have reached some followers only.
    pub async fn publish(&self, chunk: Chunk) {
        let followers = {
            let mut state = self.state();
            if state.followers.is_empty() {
                state.keep(chunk);
                return;
            }
            state.followers.clone()
        };
        let mut delivered = false;
        let mut gone = false;
        for follower in &followers {
            match follower.send(chunk.clone()).await {
                Ok(()) => delivered = true,
                Err(_) => gone = true,
            }
        }
        // Our own clones must go before the hub forgets, or a channel would stay open.
        drop(followers);
        if gone {
            let mut state = self.state();
            state.followers.retain(|follower| !follower.is_closed());
            if !delivered {
                state.keep(chunk);
            }
        }
    }

    /// Follows from now on. What nobody has followed so far comes first.
    pub fn follow(self: &Arc<Self>) -> Follower {
        let mut state = self.state();
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        if state.end.is_none() {
            state.followers.push(sender);
        }
        state.backlog_bytes = 0;
        Follower {
            backlog: std::mem::take(&mut state.backlog),
            receiver,
            hub: Arc::clone(self),
            done: false,
        }
    }

    /// Ends every stream once it has taken what is on its way. Called once, after the
    /// last [`Hub::publish`] returned.
    pub fn finish(&self, end: End) {
        let mut state = self.state();
        debug_assert!(state.end.is_none(), "a process ends once");
        state.end = Some(end);
        state.followers.clear();
    }

    pub fn end(&self) -> Option<End> {
        self.state().end.clone()
    }
}

/// One stream's view of a process.
#[derive(Debug)]
pub struct Follower {
    backlog: VecDeque<Chunk>,
    receiver: mpsc::Receiver<Chunk>,
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
        if let Some(chunk) = self.backlog.pop_front() {
            return Some(Followed::Output(chunk));
        }
        if let Some(chunk) = self.receiver.recv().await {
            return Some(Followed::Output(chunk));
        }
        self.done = true;
        // The channel closes in `finish` alone, which sets the end before.
        self.hub.end().map(Followed::Ended)
    }
}

impl Drop for Follower {
    /// What this follower did not come to take is for the next one, unless others
    /// followed beside it and had it already.
    fn drop(&mut self) {
        self.receiver.close();
        let mut untaken = std::mem::take(&mut self.backlog);
        while let Ok(chunk) = self.receiver.try_recv() {
            untaken.push_back(chunk);
        }
        let mut state = self.hub.state();
        state.followers.retain(|follower| !follower.is_closed());
        if state.followers.is_empty() && !untaken.is_empty() {
            let newer = std::mem::take(&mut state.backlog);
            state.backlog_bytes = 0;
            for chunk in untaken.into_iter().chain(newer) {
                state.keep(chunk);
            }
        }
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
