//! Pause, resume, ping, destroy, and changes of a sandbox.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use wrenn_api::id::TeamId;
use wrenn_api::sandbox::{PauseSandbox, PingSandbox, ResumeSandbox, Sandbox, UpdateSandbox};
use wrenn_api::status::Status;
use wrenn_proto::hostagent::{
    PauseSandboxRequest, PingSandboxRequest, Reason, ResumeSandboxRequest, SetEgressRequest,
};

use super::error::ServiceError;
use super::operation::{destroy_on, detached};
use super::{App, validate};
use crate::hosts::client::HostError;
use crate::hosts::convert::{self, Observation};
use crate::store::{Intent, SandboxRecord, StoreError};

/// What became of a request to destroy a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destroyed {
    Now,
    /// Its host is away: it is destroyed when it is back.
    Later,
}

/// Pauses a sandbox. One that is paused already is no error.
pub(crate) async fn pause(
    app: &Arc<App>,
    team: &TeamId,
    reference: &str,
    body: PauseSandbox,
) -> Result<Sandbox, ServiceError> {
    validate::not_offered("memory=false", !body.memory)?;
    let sandbox = app.sandbox(team, reference).await?;
    let pausing = match sandbox.usable_status() {
        Status::Paused => return Ok(sandbox.to_api()),
        Status::Running | Status::Pausing => sandbox,
        status => return Err(ServiceError::wrong_status(&sandbox.id, status)),
    };
    let task = Arc::clone(app);
    detached(app, async move {
        let app = task;
        let _working = app.working_on(&pausing.id);
        let host = app.host(&pausing.host)?;
        // One that is being paused is joined: the host does it once.
        let begun = match pausing.status {
            Status::Pausing => pausing,
            _ => app.begin(&pausing, Intent::Paused, Status::Pausing).await?,
        };
        let request = PauseSandboxRequest {
            id: begun.id.to_string(),
        };
        match host.calls.pause_sandbox(request).await {
            Ok(answer) => {
                let answer = answer.into_owned();
                let observed = answer.sandbox.as_option().and_then(Observation::of);
                finish(&app, &begun, observed).await
            }
            Err(error) => {
                let error = HostError::from(error);
                app.record_observed(&begun, &host).await;
                Err(after_change(ServiceError::of_host(&begun.id, error)))
            }
        }
    })
    .await
}

/// Resumes a sandbox. One that runs already is no error.
pub(crate) async fn resume(
    app: &Arc<App>,
    team: &TeamId,
    reference: &str,
    body: ResumeSandbox,
) -> Result<Sandbox, ServiceError> {
    validate::not_offered("end_after_sec", body.end_after_sec.is_some())?;
    if let Some(timeout_sec) = body.timeout_sec {
        validate::timeout_sec(timeout_sec)?;
    }
    let sandbox = app.sandbox(team, reference).await?;
    let paused = match sandbox.usable_status() {
        Status::Running => return Ok(sandbox.to_api()),
        Status::Paused | Status::Resuming => sandbox,
        status => return Err(ServiceError::wrong_status(&sandbox.id, status)),
    };
    let task = Arc::clone(app);
    detached(app, async move {
        let app = task;
        let _working = app.working_on(&paused.id);
        let host = app.host(&paused.host)?;
        let timeout_sec = body.timeout_sec.unwrap_or(paused.timeout_sec);
        let begun = match paused.status {
            Status::Resuming => paused,
            _ => {
                app.begin(&paused, Intent::Running, Status::Resuming)
                    .await?
            }
        };
        let request = ResumeSandboxRequest {
            id: begun.id.to_string(),
            timeout_sec: Some(timeout_sec),
        };
        match host.calls.resume_sandbox(request).await {
            Ok(answer) => {
                let answer = answer.into_owned();
                let observed = answer.sandbox.as_option().and_then(Observation::of);
                app.store
                    .set_active(&begun.id, timeout_sec, app.clock.micros())
                    .await?;
                let mut begun = begun;
                begun.timeout_sec = timeout_sec;
                begun.last_active_at = Some(app.clock.micros());
                finish(&app, &begun, observed).await
            }
            Err(error) => {
                let error = HostError::from(error);
                if error.reason() == Some(Reason::REASON_SANDBOX_NOT_FOUND) {
                    return Err(lost(&app, &begun).await?);
                }
                app.record_observed(&begun, &host).await;
                Err(after_change(ServiceError::of_host(&begun.id, error)))
            }
        }
    })
    .await
}

/// The host has nothing of a paused sandbox: it stays paused, in case the host's disk is back
/// one day.
async fn lost(app: &App, resuming: &SandboxRecord) -> Result<ServiceError, ServiceError> {
    let mut paused = resuming.clone();
    paused.status = Status::Paused;
    paused.intent = Intent::Paused;
    paused.status_reason = Some("its host does not have its snapshot".to_owned());
    app.record(resuming, &mut paused).await?;
    Ok(ServiceError::DataLost(format!(
        "the host of sandbox {} does not have its snapshot any longer; it can be destroyed",
        resuming.id
    )))
}

/// Records the outcome of a pause or resume.
async fn finish(
    app: &App,
    begun: &SandboxRecord,
    observed: Option<Observation>,
) -> Result<Sandbox, ServiceError> {
    let Some(observed) = observed else {
        return Err(ServiceError::AgentFailed(
            "the host does not say what became of the sandbox".to_owned(),
        ));
    };
    let mut next = app.observed(begun, &observed);
    if app.record(begun, &mut next).await? {
        return Ok(next.to_api());
    }
    // Another request, or the reconciler, was faster; or it is being destroyed.
    let row = app.store.sandbox_by_id(begun.id.as_str()).await?;
    match row {
        Some(row) if row.intent != Intent::Stopped => Ok(row.to_api()),
        _ => Err(ServiceError::wrong_status(&begun.id, Status::Stopped)),
    }
}

/// A host that went away in the middle may have done it.
fn after_change(error: ServiceError) -> ServiceError {
    match error {
        ServiceError::HostUnavailable { .. } => {
            ServiceError::HostUnavailable { after_change: true }
        }
        error => error,
    }
}

/// Counts as use, and may change the idle timeout. The row is written at once.
pub(crate) async fn ping(
    app: &Arc<App>,
    team: &TeamId,
    reference: &str,
    body: PingSandbox,
) -> Result<Sandbox, ServiceError> {
    if let Some(timeout_sec) = body.timeout_sec {
        validate::timeout_sec(timeout_sec)?;
    }
    let (sandbox, host) = app.running(team, reference).await?;
    let task = Arc::clone(app);
    detached(app, async move {
        let app = task;
        let request = PingSandboxRequest {
            id: sandbox.id.to_string(),
            timeout_sec: body.timeout_sec,
        };
        let answer = host.calls.ping_sandbox(request).await;
        let answer = answer
            .map_err(|error| ServiceError::of_host(&sandbox.id, error.into()))?
            .into_owned();
        let timeout_sec = body.timeout_sec.unwrap_or(sandbox.timeout_sec);
        let now = app.clock.micros();
        app.store.set_active(&sandbox.id, timeout_sec, now).await?;
        let mut shown = SandboxRecord {
            timeout_sec,
            last_active_at: Some(now),
            ..sandbox
        }
        .to_api();
        shown.idle_ms = answer.sandbox.as_option().map(|said| said.idle_ms);
        Ok(shown)
    })
    .await
}

/// Destroys a sandbox, whatever its status.
pub(crate) async fn destroy(
    app: &Arc<App>,
    team: &TeamId,
    reference: &str,
) -> Result<Destroyed, ServiceError> {
    let sandbox = app.sandbox(team, reference).await?;
    if sandbox.status == Status::Stopped {
        return Ok(Destroyed::Now);
    }
    let task = Arc::clone(app);
    detached(app, async move {
        let app = task;
        let _working = app.working_on(&sandbox.id);
        let waiting = "it is destroyed when its host is back";
        app.store
            .begin_destroy(&sandbox.id, Some(waiting), app.clock.micros())
            .await?;
        let Ok(host) = app.host(&sandbox.host) else {
            return Ok(Destroyed::Later);
        };
        match destroy_on(&host, &sandbox.id).await {
            Ok(()) => {
                app.record_stopped(&sandbox, None).await?;
                Ok(Destroyed::Now)
            }
            Err(HostError::Unreachable(error)) => {
                tracing::info!(sandbox_id = %sandbox.id, %error, "destroying a sandbox later");
                Ok(Destroyed::Later)
            }
            Err(error) => Err(ServiceError::of_host(&sandbox.id, error)),
        }
    })
    .await
}

/// Changes what a user may change.
pub(crate) async fn update(
    app: &Arc<App>,
    team: &TeamId,
    reference: &str,
    body: UpdateSandbox,
) -> Result<Sandbox, ServiceError> {
    validate::not_offered("end_after_sec", body.end_after_sec.is_some())?;
    if let Some(name) = &body.name {
        validate::name(name)?;
    }
    if let Some(metadata) = &body.metadata {
        validate::metadata(metadata)?;
    }
    if let Some(timeout_sec) = body.timeout_sec {
        validate::timeout_sec(timeout_sec)?;
    }
    if let Some(network) = &body.network {
        validate::network(network)?;
    }
    let sandbox = app.sandbox(team, reference).await?;
    let on_host = body.network.is_some() || body.timeout_sec.is_some();
    match sandbox.usable_status() {
        Status::Stopped => return Err(ServiceError::wrong_status(&sandbox.id, Status::Stopped)),
        // What its host must learn, it can learn only while the sandbox runs.
        Status::Running => {}
        status if on_host => return Err(ServiceError::wrong_status(&sandbox.id, status)),
        _ => {}
    }
    let task = Arc::clone(app);
    detached(app, async move {
        let app = task;
        let mut next = sandbox.clone();
        if on_host {
            let host = app.host(&sandbox.host)?;
            if let Some(network) = body.network {
                let request = SetEgressRequest {
                    id: sandbox.id.to_string(),
                    egress: Some(convert::egress(&network)).into(),
                };
                let set = host.calls.set_egress(request).await;
                set.map_err(|error| ServiceError::of_host(&sandbox.id, error.into()))?;
                next.network = network;
            }
            if let Some(timeout_sec) = body.timeout_sec {
                let request = PingSandboxRequest {
                    id: sandbox.id.to_string(),
                    timeout_sec: Some(timeout_sec),
                };
                let set = host.calls.ping_sandbox(request).await;
                set.map_err(|error| ServiceError::of_host(&sandbox.id, error.into()))?;
                next.timeout_sec = timeout_sec;
            }
        }
        next.name = body.name.or(next.name);
        next.metadata = body.metadata.unwrap_or(next.metadata);
        let updated = app.store.update_sandbox(&next).await;
        updated.map_err(|error| match error {
            StoreError::NameTaken => ServiceError::NameTaken(next.name.clone().unwrap_or_default()),
            error => error.into(),
        })?;
        Ok(next.to_api())
    })
    .await
}

/// The sandbox once it has one of `statuses`, or as it is after `limit` or at its end.
pub(crate) async fn wait_for(
    app: &App,
    team: &TeamId,
    reference: &str,
    statuses: &[Status],
    limit: Duration,
) -> Result<SandboxRecord, ServiceError> {
    let (_, _, mut changes) = app.events.subscribe(None);
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let sandbox = app.sandbox(team, reference).await?;
        if statuses.contains(&sandbox.status)
            || matches!(sandbox.status, Status::Stopped | Status::Error)
        {
            return Ok(sandbox);
        }
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) if change.event.sandbox_id.as_ref() != Some(&sandbox.id) => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return Ok(sandbox),
                },
                () = tokio::time::sleep_until(deadline) => return app.sandbox(team, reference).await,
                () = app.shutdown.cancelled() => return Ok(sandbox),
            }
        }
    }
}
