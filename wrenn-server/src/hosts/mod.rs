//! Hosts: the clients of their agents, and the reconciler.
//!
//! | file | what |
//! |---|---|
//! | `client` | Connect RPC to one agent |
//! | `convert` | its messages, as the API and the store have them |
//! | `reconciler` | compares rows with what hosts list, every 5 s |
//! | `settle` | the pure function that decides what to do about a difference |

pub(crate) mod client;
pub(crate) mod convert;
pub(crate) mod reconciler;
pub(crate) mod settle;

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use wrenn_api::id::HostId;

use client::HostClient;

/// How the agent of a host is reached.
#[derive(Clone)]
pub struct HostEndpoint {
    /// The name of the host, under which its row is found again.
    pub name: String,
    /// Where its agent listens: `http://127.0.0.1:7410`.
    pub url: String,
    /// What its agent wants as a bearer token; empty for none.
    pub token: String,
}

impl std::fmt::Debug for HostEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostEndpoint")
            .field("name", &self.name)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// The clients of all hosts that can be reached.
#[derive(Debug, Default)]
pub(crate) struct HostPool(RwLock<HashMap<HostId, HostClient>>);

impl HostPool {
    /// Adds a host, or replaces how it is reached.
    pub(crate) fn insert(&self, id: HostId, client: HostClient) {
        let mut clients = self.0.write().unwrap_or_else(PoisonError::into_inner);
        clients.insert(id, client);
    }

    pub(crate) fn get(&self, id: &HostId) -> Option<HostClient> {
        let clients = self.0.read().unwrap_or_else(PoisonError::into_inner);
        clients.get(id).cloned()
    }

    pub(crate) fn ids(&self) -> Vec<HostId> {
        let clients = self.0.read().unwrap_or_else(PoisonError::into_inner);
        clients.keys().cloned().collect()
    }
}
