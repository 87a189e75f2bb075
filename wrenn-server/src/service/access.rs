//! API keys, sessions of browsers, and the tickets that start one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use wrenn_api::id::TeamId;

use super::App;
use super::error::ServiceError;
use crate::store::{self, Credential, Micros};

/// How long a key that was found in the database is believed without asking again.
const KEY_CACHE_TIME: Duration = Duration::from_secs(10);
/// Keys that are remembered; random ones must not fill the memory.
const KEY_CACHE_SIZE: usize = 10_000;
/// How long a ticket can be used.
pub(crate) const TICKET_TIME: Duration = Duration::from_secs(300);
const MAX_TICKETS: usize = 1000;
/// How long a session lasts.
pub(crate) const SESSION_TIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is known of credentials without asking the database.
#[derive(Debug, Default)]
pub(crate) struct Access {
    keys: Mutex<HashMap<String, (Credential, Instant)>>,
    tickets: Mutex<HashMap<String, Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Access {
    /// A ticket that logs a browser in once.
    pub(crate) fn create_ticket(&self) -> String {
        let ticket = store::random_secret(20);
        let mut tickets = lock(&self.tickets);
        tickets.retain(|_, created| created.elapsed() < TICKET_TIME);
        if tickets.len() < MAX_TICKETS {
            tickets.insert(ticket.clone(), Instant::now());
        }
        ticket
    }

    /// Uses a ticket up. Says whether it was valid.
    pub(crate) fn redeem_ticket(&self, ticket: &str) -> bool {
        lock(&self.tickets)
            .remove(ticket)
            .is_some_and(|created| created.elapsed() < TICKET_TIME)
    }

    fn cached_key(&self, secret: &str) -> Option<Credential> {
        let keys = lock(&self.keys);
        let (credential, since) = keys.get(secret)?;
        (since.elapsed() < KEY_CACHE_TIME).then(|| credential.clone())
    }

    fn cache_key(&self, secret: &str, credential: Credential) {
        let mut keys = lock(&self.keys);
        if keys.len() >= KEY_CACHE_SIZE {
            keys.retain(|_, (_, since)| since.elapsed() < KEY_CACHE_TIME);
        }
        if keys.len() < KEY_CACHE_SIZE {
            keys.insert(secret.to_owned(), (credential, Instant::now()));
        }
    }
}

/// Whether a text has the form of an API key.
fn is_key(secret: &str) -> bool {
    secret
        .strip_prefix("wrn_")
        .is_some_and(|hex| hex.len() == 40 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl App {
    /// The team that an API key stands for.
    pub(crate) async fn team_of_key(&self, secret: &str) -> Result<TeamId, ServiceError> {
        if !is_key(secret) {
            return Err(ServiceError::Unauthorized);
        }
        let credential = match self.access.cached_key(secret) {
            Some(credential) => credential,
            None => {
                let found = self.store.key(secret).await?;
                let credential = found.ok_or(ServiceError::Unauthorized)?;
                self.access.cache_key(secret, credential.clone());
                credential
            }
        };
        self.unexpired(credential)
    }

    /// The team that the session of a browser stands for.
    pub(crate) async fn team_of_session(&self, secret: &str) -> Result<TeamId, ServiceError> {
        let found = self.store.session(secret).await?;
        self.unexpired(found.ok_or(ServiceError::Unauthorized)?)
    }

    fn unexpired(&self, credential: Credential) -> Result<TeamId, ServiceError> {
        match credential.expires_at {
            Some(end) if end <= self.clock.micros() => Err(ServiceError::Unauthorized),
            _ => Ok(credential.team),
        }
    }

    /// Starts a session of a browser with a ticket, and gives its secret.
    pub(crate) async fn log_in_locally(&self, ticket: &str) -> Result<String, ServiceError> {
        if !self.access.redeem_ticket(ticket) {
            return Err(ServiceError::Unauthorized);
        }
        let now = self.clock.micros();
        let lasts = Micros::try_from(SESSION_TIME.as_micros()).unwrap_or(Micros::MAX);
        Ok(self
            .store
            .create_session(&self.default_team, now, now.saturating_add(lasts))
            .await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_works_once() {
        let access = Access::default();
        let ticket = access.create_ticket();
        assert!(access.redeem_ticket(&ticket));
        assert!(!access.redeem_ticket(&ticket));
        assert!(!access.redeem_ticket(""));
    }
}
