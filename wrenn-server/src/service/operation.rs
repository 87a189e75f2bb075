//! The frame of every change: it runs on a task of its own, to its end.

use std::sync::Arc;

use wrenn_api::event::EventKind;
use wrenn_api::id::SandboxId;
use wrenn_api::status::Status;
use wrenn_proto::hostagent::{DestroySandboxRequest, GetSandboxRequest, Reason};

use super::error::ServiceError;
use super::{App, events};
use crate::hosts::client::{HostClient, HostError};
use crate::hosts::convert::Observation;
use crate::store::{Intent, Lease, SandboxRecord};

/// Runs `work` on a task of its own and waits for it. A caller that goes away stops waiting,
/// and nothing else.
///
/// # Cancel safety
/// The work goes on when this is dropped.
pub(crate) async fn detached<T, F>(app: &Arc<App>, work: F) -> Result<T, ServiceError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ServiceError>> + Send + 'static,
{
    match app.tasks.spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::error!(%error, "failed to finish an operation");
            Err(ServiceError::Internal("its task ended early".to_owned()))
        }
    }
}

impl App {
    /// Tells subscribers the status of a sandbox.
    pub(crate) fn publish_status(&self, sandbox: &SandboxRecord) {
        let mut event = events::event(EventKind::SandboxStatus, self.clock.now());
        event.sandbox_id = Some(sandbox.id.clone());
        event.status = Some(sandbox.status);
        event.reason.clone_from(&sandbox.status_reason);
        event.template = Some(sandbox.template.clone());
        event.host_id = Some(sandbox.host.clone());
        self.events.publish(Some(sandbox.team.clone()), event);
    }

    /// Begins an operation on a sandbox: its row says so before its host is called.
    pub(crate) async fn begin(
        &self,
        sandbox: &SandboxRecord,
        intent: Intent,
        status: Status,
    ) -> Result<SandboxRecord, ServiceError> {
        let begun = self
            .store
            .begin_operation(sandbox, intent, status, self.clock.micros())
            .await?;
        match begun {
            Some(begun) => {
                self.publish_status(&begun);
                Ok(begun)
            }
            // Somebody else was faster.
            None => {
                let now = self.store.sandbox_by_id(sandbox.id.as_str()).await?;
                let status = now.map_or(Status::Stopped, |now| now.usable_status());
                Err(ServiceError::wrong_status(&sandbox.id, status))
            }
        }
    }

    /// Records the outcome of an operation. False where the sandbox is being destroyed, or
    /// something else has changed its row.
    pub(crate) async fn record(
        &self,
        seen: &SandboxRecord,
        next: &mut SandboxRecord,
    ) -> Result<bool, ServiceError> {
        self.record_under(None, seen, next).await
    }

    /// As [`Self::record`], for the reconciler, as long as it has its lease.
    pub(crate) async fn record_under(
        &self,
        lease: Option<&Lease>,
        seen: &SandboxRecord,
        next: &mut SandboxRecord,
    ) -> Result<bool, ServiceError> {
        let now = self.clock.micros();
        let replaced = self.store.replace(lease, seen, next, now).await?;
        if replaced {
            next.changed_at = now.max(seen.changed_at + 1);
            self.publish_status(next);
        }
        Ok(replaced)
    }

    /// Records that a sandbox is gone.
    pub(crate) async fn record_stopped(
        &self,
        sandbox: &SandboxRecord,
        reason: Option<&str>,
    ) -> Result<(), ServiceError> {
        self.record_stopped_under(None, sandbox, reason).await
    }

    /// As [`Self::record_stopped`], for the reconciler, as long as it has its lease.
    pub(crate) async fn record_stopped_under(
        &self,
        lease: Option<&Lease>,
        sandbox: &SandboxRecord,
        reason: Option<&str>,
    ) -> Result<(), ServiceError> {
        let now = self.clock.micros();
        let stopped = self.store.set_stopped(lease, &sandbox.id, reason, now);
        if stopped.await? {
            let mut stopped = sandbox.clone();
            stopped.status = Status::Stopped;
            stopped.status_reason = reason.map(str::to_owned);
            self.publish_status(&stopped);
        }
        Ok(())
    }

    /// Records that the host of a sandbox does not have it any longer.
    pub(crate) async fn record_vanished(
        &self,
        lease: &Lease,
        sandbox: &SandboxRecord,
        reason: &str,
    ) -> Result<(), ServiceError> {
        let now = self.clock.micros();
        let vanished = self.store.set_vanished(lease, &sandbox.id, reason, now);
        if vanished.await? {
            let mut stopped = sandbox.clone();
            stopped.status = Status::Stopped;
            stopped.status_reason = Some(reason.to_owned());
            self.publish_status(&stopped);
        }
        Ok(())
    }

    /// After a failed operation: records what the host says of the sandbox now. Where it does
    /// not answer, the reconciler does it later.
    pub(crate) async fn record_observed(&self, sandbox: &SandboxRecord, host: &HostClient) {
        let Ok(Some(observed)) = observe(host, &sandbox.id).await else {
            return;
        };
        let mut next = self.observed(sandbox, &observed);
        if let Err(error) = self.record(sandbox, &mut next).await {
            tracing::warn!(sandbox_id = %sandbox.id, %error, "failed to record a sandbox's status");
        }
    }

    /// The row of a sandbox as its host describes it.
    pub(crate) fn observed(
        &self,
        sandbox: &SandboxRecord,
        observed: &Observation,
    ) -> SandboxRecord {
        let mut next = sandbox.clone();
        next.status = observed.status;
        next.status_reason.clone_from(&observed.reason);
        let now = self.clock.micros();
        match observed.status {
            Status::Running => {
                next.intent = Intent::Running;
                if sandbox.status != Status::Missing || next.started_at.is_none() {
                    next.started_at = Some(now);
                }
                next.paused_at = None;
            }
            Status::Paused => {
                next.intent = Intent::Paused;
                next.paused_at.get_or_insert(now);
            }
            _ => {}
        }
        if observed.vcpus > 0 && observed.memory_mb > 0 {
            next.vcpus = observed.vcpus;
            next.memory_mb = observed.memory_mb;
        }
        if !observed.phases_ms.is_empty() {
            next.phases_ms.clone_from(&observed.phases_ms);
        }
        next
    }
}

/// What a host says of a sandbox; `None` where it does not have it.
pub(crate) async fn observe(
    host: &HostClient,
    id: &SandboxId,
) -> Result<Option<Observation>, HostError> {
    let request = GetSandboxRequest { id: id.to_string() };
    match host.calls.get_sandbox(request).await {
        Ok(answer) => Ok(answer
            .into_owned()
            .sandbox
            .as_option()
            .and_then(Observation::of)),
        Err(error) => match HostError::from(error) {
            error if error.reason() == Some(Reason::REASON_SANDBOX_NOT_FOUND) => Ok(None),
            error => Err(error),
        },
    }
}

/// Destroys a sandbox on its host. One that is not there is no error.
pub(crate) async fn destroy_on(host: &HostClient, id: &SandboxId) -> Result<(), HostError> {
    let request = DestroySandboxRequest { id: id.to_string() };
    match host.calls.destroy_sandbox(request).await {
        Ok(_) => Ok(()),
        Err(error) => match HostError::from(error) {
            error if error.reason() == Some(Reason::REASON_SANDBOX_NOT_FOUND) => Ok(()),
            error => Err(error),
        },
    }
}
