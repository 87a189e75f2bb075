//! One sandbox of a fake host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wrenn_proto::buffa::MessageField;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::{Egress, Resources, Sandbox as SandboxMessage, State};

use crate::clock::{Activity, Clock, InUse};
use crate::errors::{destroyed, wrong_state};
use crate::guest::Guest;

/// What was asked for. The same id with other properties is refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Properties {
    pub(crate) template: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) timeout: Duration,
    pub(crate) egress: Option<Egress>,
}

impl Properties {
    pub(crate) fn resources(&self) -> Resources {
        Resources {
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
        }
    }
}

/// What changes in the life of a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) reason: String,
    /// What callers are told instead.
    pub(crate) pretended: Option<(State, String)>,
    pub(crate) auto_paused: bool,
    pub(crate) timeout: Duration,
    pub(crate) egress: Option<Egress>,
    pub(crate) phases_ms: BTreeMap<&'static str, f64>,
}

/// A sandbox. Its operations run one after another.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) properties: Properties,
    pub(crate) created_at: SystemTime,
    pub(crate) activity: Activity,
    /// Held by the operation that runs.
    pub(crate) operation: tokio::sync::Mutex<()>,
    /// Cancelled when it is to be destroyed, so that its creation ends early.
    pub(crate) destroyed: CancellationToken,
    /// Why it was never there.
    pub(crate) failure: OnceLock<ConnectError>,
    pub(crate) console: watch::Sender<Vec<u8>>,
    status: watch::Sender<Status>,
    guest: Mutex<Option<Arc<Guest>>>,
}

/// A running sandbox that counts as used for as long as this is there.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) guest: Arc<Guest>,
    _in_use: InUse,
}

/// Whether an answer holds the access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Shown,
    Hidden,
}

impl Sandbox {
    pub(crate) fn new(id: String, properties: Properties, clock: Clock) -> Arc<Self> {
        let status = Status {
            state: State::STATE_PENDING,
            reason: String::new(),
            pretended: None,
            auto_paused: false,
            timeout: properties.timeout,
            egress: properties.egress.clone(),
            phases_ms: BTreeMap::new(),
        };
        let console = format!("fake host: sandbox {id} boots\r\n");
        Arc::new(Self {
            id,
            properties,
            created_at: SystemTime::now(),
            activity: Activity::new(clock),
            operation: tokio::sync::Mutex::new(()),
            destroyed: CancellationToken::new(),
            failure: OnceLock::new(),
            console: watch::Sender::new(console.into_bytes()),
            status: watch::Sender::new(status),
            guest: Mutex::new(None),
        })
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(crate) fn state(&self) -> State {
        self.status.borrow().state
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    pub(crate) fn set_state(&self, state: State) {
        self.change(|status| status.state = state);
    }

    pub(crate) fn guest(&self) -> Option<Arc<Guest>> {
        self.lock_guest().clone()
    }

    pub(crate) fn set_guest(&self, guest: Arc<Guest>) {
        *self.lock_guest() = Some(guest);
    }

    /// Takes the guest away. Its processes end with the last user of it.
    pub(crate) fn take_guest(&self) -> Option<Arc<Guest>> {
        self.lock_guest().take()
    }

    fn lock_guest(&self) -> std::sync::MutexGuard<'_, Option<Arc<Guest>>> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is created, or failed.
    pub(crate) async fn created(&self) -> Result<(), ConnectError> {
        let mut status = self.status.subscribe();
        status
            .wait_for(|status| status.state != State::STATE_PENDING)
            .await
            .ok();
        match self.failure.get() {
            Some(failure) => Err(failure.clone()),
            None if self.state() == State::STATE_STOPPED => Err(destroyed(&self.id)),
            None => Ok(()),
        }
    }

    /// Enters the guest, if it runs.
    pub(crate) fn visit(self: &Arc<Self>) -> Result<Visit, ConnectError> {
        let state = self.state();
        match self.guest() {
            Some(guest) if state == State::STATE_RUNNING => Ok(Visit {
                guest,
                _in_use: self.activity.in_use(),
                sandbox: Arc::clone(self),
            }),
            _ => Err(self.not_running_error()),
        }
    }

    /// Waits until it runs no longer.
    pub(crate) async fn not_running(&self) -> ConnectError {
        let mut status = self.status.subscribe();
        let ended = status.wait_for(|status| status.state != State::STATE_RUNNING);
        ended.await.ok();
        self.not_running_error()
    }

    fn not_running_error(&self) -> ConnectError {
        self.refusal("commands run only in one that is running")
    }

    /// It is in a state that does not allow something.
    pub(crate) fn refusal(&self, allowed: &str) -> ConnectError {
        let status = self.status();
        wrong_state(&self.id, status.state, &status.reason, allowed)
    }

    pub(crate) fn describe(&self, token: Token) -> SandboxMessage {
        let status = self.status();
        // A paused one is nowhere to be reached.
        let guest = self
            .guest()
            .filter(|_| status.state == State::STATE_RUNNING);
        let client = guest.as_deref().map(Guest::client);
        let (state, reason) = status.pretended.unwrap_or((status.state, status.reason));
        SandboxMessage {
            id: self.id.clone(),
            template: self.properties.template.clone(),
            resources: MessageField::some(self.properties.resources()),
            state: state.into(),
            reason,
            created_at: humantime::format_rfc3339_millis(self.created_at).to_string(),
            timeout_sec: status.timeout.as_secs(),
            idle_ms: u64::try_from(self.activity.idle().as_millis()).unwrap_or(u64::MAX),
            metadata: self.properties.metadata.clone().into_iter().collect(),
            address: client.map_or_else(String::new, |client| client.address().ip().to_string()),
            access_token: client
                .filter(|_| token == Token::Shown)
                .map_or_else(String::new, |client| client.token().to_owned()),
            phases_ms: status
                .phases_ms
                .iter()
                .map(|(phase, took)| ((*phase).to_owned(), *took))
                .collect(),
            pager_pid: 0,
        }
    }
}

impl Visit {
    /// Waits for the guest's answer, or for the end of the sandbox.
    pub(crate) async fn ask<T>(
        &self,
        asked: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        tokio::select! {
            biased;
            answered = asked => answered,
            gone = self.sandbox.not_running() => Err(gone),
        }
    }
}
