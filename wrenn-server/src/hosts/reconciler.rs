//! Compares the rows of a host's sandboxes with what the host lists, every 5 s.
//!
//! ```text
//!  lease ─▶ ListSandboxes ─▶ for each row: settle ─▶ record, ask, destroy
//!             │                for each unknown one, in two lists: pause, show as an orphan
//!             └─ failed for 90 s ─▶ host `unreachable`, its live sandboxes `missing`
//! ```
//!
//! It is idempotent, and concludes nothing from a list that failed. A row that changed after
//! the host was asked is left to the next round, and so is one that an operation works on.
//! Idle sandboxes that the host paused are acknowledged to it once their rows say so.
//!
//! A reconciler may be suspended for longer than its lease lasts, and another server works on the
//! host then: each write holds the lease, and so does each call that changes something on the
//! host. The first that finds the lease lost ends the round.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use wrenn_api::event::EventKind;
use wrenn_api::id::{HostId, SandboxId};
use wrenn_api::status::{HostStatus, Status};
use wrenn_proto::hostagent::{
    AcknowledgeAutoPausedRequest, ListSandboxesRequest, ListSandboxesResponse,
    ListSnapshotsRequest, PauseSandboxRequest, State,
};

use super::client::{HostClient, HostError};
use super::convert::Observation;
use super::settle::{HostIdentity, NOT_FOUND_LIMIT, Observed, Step, settle};
use crate::service::App;
use crate::service::error::ServiceError;
use crate::service::events;
use crate::service::operation::{destroy_on, observe};
use crate::service::snapshots::{delete_discarded, discard, finish_delete};
use crate::store::{HostRecord, Intent, Lease, Micros, SandboxRecord, StoreError};

/// How long a lease lasts beyond the round that takes it.
const LEASE_ROUNDS: u32 = 6;
/// How long a host may take to list its sandboxes.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often old idempotency keys are looked for, in rounds.
const EXPIRY_ROUNDS: u64 = 720;
/// How often a host is asked for snapshots that were discarded, in rounds.
const SNAPSHOT_ROUNDS: u64 = 12;
/// How long after it began a creation that was given up may still end on its host.
const DISCARDED_TIME: Duration = Duration::from_secs(24 * 3600);
/// How long an idempotency key is kept.
const KEYED_REQUEST_TIME: Duration = Duration::from_secs(24 * 3600);

fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

/// Reconciles one host until the server stops.
pub(crate) struct Reconciler {
    app: Arc<App>,
    host: HostId,
    /// Unknown sandboxes of the last list: those of two lists are orphans.
    unknown: HashSet<String>,
    round: u64,
    /// From when on a host is silent that never answered.
    started_at: Micros,
}

impl Reconciler {
    pub(crate) fn new(app: Arc<App>, host: HostId) -> Self {
        Self {
            started_at: app.clock.micros(),
            app,
            host,
            unknown: HashSet::new(),
            round: 0,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut ticks = tokio::time::interval(self.app.settings.reconcile_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.app.shutdown.cancelled() => break,
            }
            if let Err(error) = self.round().await {
                warn!(host_id = %self.host, %error, "failed to reconcile a host");
            }
        }
        let released = self
            .app
            .store
            .release_lease(&self.host, &self.app.instance)
            .await;
        if let Err(error) = released {
            warn!(host_id = %self.host, %error, "failed to release a lease");
        }
    }

    async fn round(&mut self) -> Result<(), ServiceError> {
        let app = Arc::clone(&self.app);
        let now = app.clock.micros();
        let until = now + micros(app.settings.reconcile_interval * LEASE_ROUNDS);
        let lease = app
            .store
            .take_lease(&self.host, &app.instance, now, until)
            .await?;
        let Some(lease) = lease else {
            return Ok(());
        };
        self.round += 1;
        if self.round % EXPIRY_ROUNDS == 1 {
            app.store
                .expire_requests(now - micros(KEYED_REQUEST_TIME))
                .await?;
        }
        let hosts = app.store.hosts().await?;
        let Some(host) = hosts.into_iter().find(|host| host.id == self.host) else {
            return Ok(());
        };
        let asked_at = app.clock.micros();
        let client = self.client()?;
        let listing = client.calls.list_sandboxes(ListSandboxesRequest::default());
        let listed = match tokio::time::timeout(LIST_TIMEOUT, listing).await {
            Ok(Ok(listed)) => listed.into_owned(),
            Ok(Err(error)) => {
                let error = HostError::from(error);
                return self.absent(&lease, &host, &error.to_string()).await;
            }
            Err(_) => {
                return self
                    .absent(&lease, &host, "it did not list its sandboxes in time")
                    .await;
            }
        };
        self.present(&lease, &host, &listed).await?;
        self.settle_all(&lease, &host, &listed, asked_at).await?;
        self.find_orphans(&lease, &listed).await?;
        self.settle_snapshots(&lease, now).await
    }

    /// Ends what was begun with snapshots: deletions, and creations whose server was killed.
    async fn settle_snapshots(&self, lease: &Lease, now: Micros) -> Result<(), ServiceError> {
        let app = &self.app;
        // A snapshot has no operation that says whether it is worked on: only old ones count
        // as interrupted.
        let before = now - micros(app.settings.interrupted_after);
        for snapshot in app.store.undeleted_snapshots(&self.host, before).await? {
            app.store.check_lease(lease).await?;
            finish_delete(app, Some(lease), &snapshot).await;
        }
        for snapshot in app.store.interrupted_snapshots(&self.host, before).await? {
            info!(snapshot = %snapshot.id, "discarding a snapshot whose creation did not end");
            discard(app, Some(lease), &snapshot).await?;
        }
        if self.round.is_multiple_of(SNAPSHOT_ROUNDS) {
            self.delete_discarded_snapshots(lease, now).await?;
        }
        Ok(())
    }

    /// Deletes snapshots that the host made after they were discarded. Others that the host has
    /// are left alone, also those that no row describes.
    async fn delete_discarded_snapshots(
        &self,
        lease: &Lease,
        now: Micros,
    ) -> Result<(), ServiceError> {
        let app = &self.app;
        let discarded = app.store.discarded_snapshots(&self.host).await?;
        if discarded.is_empty() {
            return Ok(());
        }
        let client = self.client()?;
        let listing = client.calls.list_snapshots(ListSnapshotsRequest::default());
        let listed = match tokio::time::timeout(LIST_TIMEOUT, listing).await {
            Ok(Ok(listed)) => listed.into_owned(),
            Ok(Err(error)) => {
                let error = HostError::from(error);
                warn!(host_id = %self.host, %error, "failed to list snapshots");
                return Ok(());
            }
            Err(_) => {
                warn!(host_id = %self.host, "failed to list snapshots in time");
                return Ok(());
            }
        };
        let there: HashSet<&str> = listed
            .snapshots
            .iter()
            .map(|snapshot| snapshot.name.as_str())
            .collect();
        for snapshot in discarded {
            if there.contains(snapshot.id.as_str()) {
                app.store.check_lease(lease).await?;
                delete_discarded(&client, &snapshot).await;
            }
        }
        // A snapshot that is there was deleted just now, or is tried again until it is that old.
        app.store
            .expire_discarded_snapshots(lease, &self.host, now - micros(DISCARDED_TIME))
            .await?;
        Ok(())
    }

    /// The client of the host, which may be reached at another address than before.
    fn client(&self) -> Result<HostClient, ServiceError> {
        self.app.host(&self.host)
    }

    /// The host answered.
    async fn present(
        &self,
        lease: &Lease,
        host: &HostRecord,
        listed: &ListSandboxesResponse,
    ) -> Result<(), ServiceError> {
        let app = &self.app;
        let now = app.clock.micros();
        let status = match host.status {
            HostStatus::Cordoned | HostStatus::Draining => host.status,
            _ => HostStatus::Online,
        };
        app.store
            .host_seen(lease, status, &listed.root_id, now)
            .await?;
        if status != host.status {
            info!(host = %host.name, "host is online");
            self.publish(status);
        }
        Ok(())
    }

    /// The host did not answer.
    async fn absent(
        &self,
        lease: &Lease,
        host: &HostRecord,
        why: &str,
    ) -> Result<(), ServiceError> {
        let app = &self.app;
        let now = app.clock.micros();
        tracing::debug!(host = %host.name, why, "host did not answer");
        // One that never listed anything may have made sandboxes all the same.
        let seen = host.last_seen_at.unwrap_or(self.started_at);
        if now - seen < micros(app.settings.host_stale_after) {
            return Ok(());
        }
        if host.status != HostStatus::Unreachable {
            warn!(host = %host.name, why, "host is unreachable");
            app.store
                .set_host_status(lease, HostStatus::Unreachable)
                .await?;
            self.publish(HostStatus::Unreachable);
        }
        for sandbox in app.store.sandboxes_of_host(&host.id).await? {
            if app.is_worked_on(&sandbox.id) {
                continue;
            }
            self.record_missing(lease, &sandbox, "its host does not answer")
                .await?;
        }
        Ok(())
    }

    async fn record_missing(
        &self,
        lease: &Lease,
        sandbox: &SandboxRecord,
        reason: &str,
    ) -> Result<(), ServiceError> {
        let app = &self.app;
        let now = app.clock.micros();
        let missing = app.store.set_missing(lease, &sandbox.id, reason, now);
        if missing.await? {
            let mut missing = sandbox.clone();
            missing.status = Status::Missing;
            missing.status_reason = Some(reason.to_owned());
            app.publish_status(&missing);
        }
        Ok(())
    }

    fn publish(&self, status: HostStatus) {
        let mut event = events::event(EventKind::HostStatus, self.app.clock.now());
        event.host_id = Some(self.host.clone());
        event.host_status = Some(status);
        self.app.events.publish(None, event);
    }

    async fn settle_all(
        &self,
        lease: &Lease,
        host: &HostRecord,
        listed: &ListSandboxesResponse,
        asked_at: Micros,
    ) -> Result<(), ServiceError> {
        let app = &self.app;
        let observed: HashMap<&str, Observation> = listed
            .sandboxes
            .iter()
            .filter_map(|sandbox| Some((sandbox.id.as_str(), Observation::of(sandbox)?)))
            .collect();
        // Read after the list: a row that is newer than the list is left alone.
        for sandbox in app.store.sandboxes_of_host(&self.host).await? {
            if sandbox.changed_at >= asked_at || app.is_worked_on(&sandbox.id) {
                continue;
            }
            let seen = observed.get(sandbox.id.as_str());
            let settled = self.settle_one(lease, host, &sandbox, seen, &listed.root_id);
            match settled.await {
                Err(error @ ServiceError::Store(StoreError::LeaseLost { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    warn!(sandbox_id = %sandbox.id, %error, "failed to settle a sandbox");
                }
                Ok(()) => {}
            }
        }
        self.acknowledge(&listed.auto_paused_sandbox_ids).await
    }

    async fn settle_one(
        &self,
        lease: &Lease,
        host: &HostRecord,
        sandbox: &SandboxRecord,
        seen: Option<&Observation>,
        root_id: &str,
    ) -> Result<(), ServiceError> {
        // A row of before its first list was made for the root directory that was known then.
        let made_in = sandbox.root_id.as_ref().or(host.root_id.as_ref());
        let identity = match made_in {
            Some(known) if known != root_id => HostIdentity::Other,
            _ => HostIdentity::Same,
        };
        let observed = match seen {
            Some(observation) => Observed::Listed(observation.status),
            None => Observed::NotListed,
        };
        let mut step = settle(sandbox.intent, sandbox.status, observed, identity);
        let mut asked = None;
        if step == Step::Ask {
            let found = observe(&self.client()?, &sandbox.id).await;
            let found = found.map_err(|error| ServiceError::of_host(&sandbox.id, error))?;
            let observed = match &found {
                Some(observation) => Observed::Listed(observation.status),
                None => {
                    self.app.store.count_not_found(lease, &sandbox.id).await?;
                    Observed::NotFound(sandbox.not_found + 1)
                }
            };
            asked = found;
            step = settle(sandbox.intent, sandbox.status, observed, identity);
        }
        let found = seen.or(asked.as_ref());
        if found.is_some() && (sandbox.not_found > 0 || sandbox.root_id.as_deref() != Some(root_id))
        {
            self.app
                .store
                .set_found(lease, &sandbox.id, root_id)
                .await?;
        }
        self.carry_out(lease, sandbox, step, found).await
    }

    async fn carry_out(
        &self,
        lease: &Lease,
        sandbox: &SandboxRecord,
        step: Step,
        observation: Option<&Observation>,
    ) -> Result<(), ServiceError> {
        let app = &self.app;
        match step {
            Step::Nothing | Step::Ask => Ok(()),
            Step::Record(status) => {
                let Some(observation) = observation else {
                    return Ok(());
                };
                info!(sandbox_id = %sandbox.id, from = %sandbox.status, to = %status, "recorded a sandbox's status");
                let mut next = app.observed(sandbox, observation);
                if status == Status::Paused && next.status_reason.is_none() {
                    next.status_reason = paused_by_host(sandbox);
                }
                app.record_under(Some(lease), sandbox, &mut next)
                    .await
                    .map(drop)
            }
            Step::RecordStopped if sandbox.intent == Intent::Stopped => {
                info!(sandbox_id = %sandbox.id, "recorded a sandbox as stopped");
                app.record_stopped_under(Some(lease), sandbox, None).await
            }
            Step::RecordStopped => {
                let reason = "its host does not have it any longer";
                warn!(sandbox_id = %sandbox.id, reason, "recorded a sandbox as stopped");
                app.record_vanished(lease, sandbox, reason).await
            }
            Step::RecordMissing => {
                self.record_missing(
                    lease,
                    sandbox,
                    "its host has another root directory than before",
                )
                .await
            }
            Step::RecordFailed => {
                let mut failed = sandbox.clone();
                failed.status = Status::Error;
                failed.status_reason =
                    Some("the server stopped before it was created; destroy it".to_owned());
                app.record_under(Some(lease), sandbox, &mut failed)
                    .await
                    .map(drop)
            }
            Step::Destroy => {
                app.store.check_lease(lease).await?;
                info!(sandbox_id = %sandbox.id, "destroying a sandbox that shall be stopped");
                destroy_on(&self.client()?, &sandbox.id)
                    .await
                    .map_err(|error| ServiceError::of_host(&sandbox.id, error))?;
                app.record_stopped_under(
                    Some(lease),
                    sandbox,
                    sandbox
                        .status_reason
                        .as_deref()
                        .filter(|_| sandbox.status == Status::Pending),
                )
                .await
            }
        }
    }

    /// Tells the host which of its pauses the rows say now.
    async fn acknowledge(&self, auto_paused: &[String]) -> Result<(), ServiceError> {
        let app = &self.app;
        let mut known = Vec::new();
        for id in auto_paused {
            let row = app.store.sandbox_by_id(id).await?;
            if row.is_some_and(|row| matches!(row.status, Status::Paused | Status::Stopped)) {
                known.push(id.clone());
            }
        }
        if known.is_empty() {
            return Ok(());
        }
        let request = AcknowledgeAutoPausedRequest { ids: known };
        if let Err(error) = self.client()?.calls.acknowledge_auto_paused(request).await {
            // They are named again in the next list.
            warn!(host_id = %self.host, %error, "failed to acknowledge pauses");
        }
        Ok(())
    }

    /// Sandboxes that the host has and no row describes. A database that was restored or
    /// emptied must end none: those in two lists are paused and shown.
    async fn find_orphans(
        &mut self,
        lease: &Lease,
        listed: &ListSandboxesResponse,
    ) -> Result<(), ServiceError> {
        let app = &self.app;
        let client = self.client()?;
        let mut unknown = HashSet::new();
        let mut orphans = Vec::new();
        for sandbox in &listed.sandboxes {
            let Ok(id) = sandbox.id.parse::<SandboxId>() else {
                continue;
            };
            if let Some(row) = app.store.sandbox_by_id(&sandbox.id).await? {
                let doomed = row.intent == Intent::Stopped;
                if row.status == Status::Stopped && doomed && !app.is_worked_on(&id) {
                    // It was destroyed while its host was away.
                    app.store.check_lease(lease).await?;
                    info!(sandbox_id = %id, "destroying a sandbox whose row is stopped");
                    if let Err(error) = destroy_on(&client, &id).await {
                        warn!(sandbox_id = %id, %error, "failed to destroy a sandbox");
                    }
                }
                if row.status != Status::Stopped || doomed {
                    continue;
                }
                // It vanished, and is there again.
            }
            if self.unknown.contains(&sandbox.id) {
                orphans.push((sandbox.id.clone(), sandbox.template.clone()));
                if sandbox.state.as_known() == Some(State::STATE_RUNNING) {
                    app.store.check_lease(lease).await?;
                    warn!(sandbox_id = %id, host_id = %self.host, "pausing a sandbox that no row describes");
                    let request = PauseSandboxRequest { id: id.to_string() };
                    if let Err(error) = client.calls.pause_sandbox(request).await {
                        warn!(sandbox_id = %id, %error, "failed to pause an orphan");
                    }
                }
            }
            unknown.insert(sandbox.id.clone());
        }
        let had_orphans = !self.unknown.is_empty();
        self.unknown = unknown;
        if had_orphans || !orphans.is_empty() {
            app.store
                .record_orphans(lease, &orphans, app.clock.micros())
                .await?;
        }
        Ok(())
    }
}

fn paused_by_host(sandbox: &SandboxRecord) -> Option<String> {
    (sandbox.intent == Intent::Running && sandbox.timeout_sec > 0).then(|| {
        format!(
            "it was not used for its idle timeout of {} s",
            sandbox.timeout_sec
        )
    })
}

const _: () = assert!(NOT_FOUND_LIMIT > 1, "one answer ends no sandbox");
