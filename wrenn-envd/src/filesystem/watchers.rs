//! Watches of clients that poll.
//!
//! A task takes events from the kernel as they come, so that new directories are
//! watched at once; asking for events takes the rest itself, so that what a client did
//! before it asked is always in the answer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wrenn_proto::filesystem::FilesystemEvent;

use super::tree::unique;
use super::watch::{Watch, WatchError};

/// A client that never removes its watchers must not fill the guest.
const MAX_WATCHERS: usize = 256;
/// Events kept for a client that does not ask for them.
const MAX_EVENTS: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum WatcherError {
    #[error("watcher '{id}' not found")]
    NotFound { id: String },
    #[error("there are {MAX_WATCHERS} watchers already; remove some")]
    TooMany,
    #[error(transparent)]
    Watch(WatchError),
}

#[derive(Debug, Default)]
pub struct Watchers(Mutex<HashMap<String, Arc<Watcher>>>);

#[derive(Debug)]
struct Watcher {
    state: tokio::sync::Mutex<State>,
    removed: CancellationToken,
}

#[derive(Debug)]
struct State {
    watch: Watch,
    events: VecDeque<FilesystemEvent>,
    /// Told to the client after the events that came before it.
    failure: Option<WatchError>,
}

impl State {
    fn collect(&mut self) {
        if self.failure.is_some() {
            return;
        }
        match self.watch.take() {
            Ok(events) => self.events.extend(events),
            Err(error) => self.failure = Some(error),
        }
        if self.events.len() > MAX_EVENTS {
            self.events.truncate(MAX_EVENTS);
            self.failure = Some(WatchError::Overflow);
        }
    }
}

impl Watchers {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Arc<Watcher>>> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes a watch in; the answer is its id.
    pub fn add(&self, watch: Watch, tasks: &TaskTracker) -> Result<String, WatcherError> {
        let mut table = self.table();
        if table.len() >= MAX_WATCHERS {
            return Err(WatcherError::TooMany);
        }
        let notice = watch.notice();
        let watcher = Arc::new(Watcher {
            state: tokio::sync::Mutex::new(State {
                watch,
                events: VecDeque::new(),
                failure: None,
            }),
            removed: CancellationToken::new(),
        });
        let id = format!("w{}", unique());
        table.insert(id.clone(), Arc::clone(&watcher));
        tasks.spawn(async move {
            let collect = async {
                while let Ok(mut ready) = notice.readable().await {
                    let mut state = watcher.state.lock().await;
                    state.collect();
                    if state.failure.is_some() {
                        break;
                    }
                    ready.clear_ready();
                }
            };
            watcher.removed.run_until_cancelled(collect).await;
        });
        Ok(id)
    }

    /// Everything since the last time.
    pub async fn take(&self, id: &str) -> Result<Vec<FilesystemEvent>, WatcherError> {
        let watcher = self.table().get(id).cloned().ok_or_else(|| not_found(id))?;
        let mut state = watcher.state.lock().await;
        state.collect();
        if state.events.is_empty()
            && let Some(error) = state.failure.take()
        {
            // Later asks hear of it, too.
            state.failure = Some(WatchError::Overflow);
            return Err(WatcherError::Watch(error));
        }
        Ok(std::mem::take(&mut state.events).into())
    }

    pub fn remove(&self, id: &str) -> Result<(), WatcherError> {
        let watcher = self.table().remove(id).ok_or_else(|| not_found(id))?;
        watcher.removed.cancel();
        Ok(())
    }

    /// Ends all of them.
    pub fn clear(&self) {
        for (_, watcher) in self.table().drain() {
            watcher.removed.cancel();
        }
    }
}

fn not_found(id: &str) -> WatcherError {
    WatcherError::NotFound { id: id.to_owned() }
}
