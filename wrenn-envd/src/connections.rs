//! Connections that are open, and their end when the guest was resumed.
//!
//! A resumed guest has the connections of its snapshot, whose other ends are gone or belong to
//! somebody else. No packet says so for minutes, and meanwhile a command that such a connection
//! follows waits for it, and everybody else with the command. So what the host says first after
//! a boot or a resume closes all other connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;

/// Which connection a request came by; an extension of its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId(u64);

#[derive(Debug, Default)]
pub struct Connections(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    tokens: HashMap<u64, CancellationToken>,
    next: u64,
}

/// A connection for as long as it is served.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    token: CancellationToken,
    open: Arc<Mutex<Open>>,
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Connections {
    /// Notes one that was accepted.
    pub fn accept(&self) -> Connection {
        let token = CancellationToken::new();
        let mut open = lock(&self.0);
        let id = open.next;
        open.next += 1;
        open.tokens.insert(id, token.clone());
        Connection {
            id: ConnectionId(id),
            token,
            open: Arc::clone(&self.0),
        }
    }

    /// Closes all but one. How many that were.
    pub fn close_others(&self, spared: Option<ConnectionId>) -> usize {
        let open = lock(&self.0);
        let others = open
            .tokens
            .iter()
            .filter(|(id, _)| spared != Some(ConnectionId(**id)));
        others.map(|(_, token)| token.cancel()).count()
    }
}

impl Connection {
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Waits until it must be closed.
    pub async fn closed(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.open).tokens.remove(&self.id.0);
    }
}
