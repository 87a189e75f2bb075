//! A sandbox from a template.
//!
//! ```text
//!  checked ─▶ row `pending` and idempotency key, one transaction ─▶ CreateSandbox on the host
//!                                                                      │ made       │ refused
//!                                            row `running`, answer kept ◀┘            ▼
//!                                                        destroyed, row `stopped`, key freed
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wrenn_api::event::EventKind;
use wrenn_api::id::{HostId, SandboxId, TeamId, TemplateId};
use wrenn_api::sandbox::{CreateSandbox, Sandbox, Source};
use wrenn_api::status::{HostStatus, Status};
use wrenn_proto::hostagent::{CreateSandboxRequest, Reason, Resources};

use super::error::ServiceError;
use super::operation::{destroy_on, detached};
use super::{App, events, validate};
use crate::hosts::client::{HostClient, HostError};
use crate::hosts::convert::{self, Observation};
use crate::store::{Begun, Intent, KeyedRequest, NewRows, SandboxRecord, StoreError};

/// How often a creation whose answer was lost is asked for again: it is the same one.
const ATTEMPTS: u32 = 5;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const DEFAULT_VCPUS: u32 = 1;
const DEFAULT_MEMORY_MB: u32 = 512;
/// The status that a creation is answered with.
pub(crate) const CREATED: u16 = 201;

/// The answer to a request that may have been made before.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Fresh(T),
    Replay { status: u16, body: String },
}

/// What a template is on its host, and what it fixes.
struct ResolvedTemplate {
    host: HostId,
    /// The root directory that the host had last.
    root_id: Option<String>,
    name: String,
    vcpus: u32,
    memory_mb: u32,
    source: Source,
}

/// Creates a sandbox.
pub(crate) async fn create(
    app: &Arc<App>,
    team: &TeamId,
    body: CreateSandbox,
    request: Option<KeyedRequest>,
) -> Result<Answer<Sandbox>, ServiceError> {
    check(&body)?;
    let template = resolve(app, team, &body).await?;
    let now = app.clock.micros();
    let pending = SandboxRecord {
        id: SandboxId::random(),
        team: team.clone(),
        host: template.host.clone(),
        name: body.name.clone(),
        template: body.template.clone(),
        vcpus: template.vcpus,
        memory_mb: template.memory_mb,
        timeout_sec: body.timeout_sec,
        metadata: body.metadata.clone(),
        network: body.network.clone(),
        source: template.source.clone(),
        generation: 1,
        intent: Intent::Running,
        status: Status::Pending,
        status_reason: None,
        changed_at: now,
        not_found: 0,
        root_id: template.root_id.clone(),
        phases_ms: BTreeMap::new(),
        created_at: now,
        started_at: None,
        last_active_at: Some(now),
        paused_at: None,
        stopped_at: None,
    };
    let wait = body.wait;
    let app_task = Arc::clone(app);
    // From here on it runs to its end: the row exists, and somebody must finish it.
    let work = async move {
        let app = app_task;
        let begun = begin(&app, &pending, request.as_ref()).await?;
        let pending = match begun {
            Beginning::New => pending,
            Beginning::Resumed(earlier) => *earlier,
            Beginning::Replay { status, body } => return Ok(Answer::Replay { status, body }),
        };
        let creation = Creation {
            app: Arc::clone(&app),
            host_template: template.name,
            env: body.env,
            wait,
            request,
        };
        if wait {
            return creation.run(pending).await.map(Answer::Fresh);
        }
        let shown = pending.to_api();
        app.tasks.spawn(async move {
            if let Err(error) = creation.run(pending).await {
                tracing::info!(%error, "failed to create a sandbox in the background");
            }
        });
        Ok(Answer::Fresh(shown))
    };
    detached(app, work).await
}

fn check(body: &CreateSandbox) -> Result<(), ServiceError> {
    validate::template(&body.template)?;
    if let Some(name) = &body.name {
        validate::name(name)?;
    }
    if let Some(vcpus) = body.vcpus {
        validate::vcpus(vcpus)?;
    }
    if let Some(memory_mb) = body.memory_mb {
        validate::memory_mb(memory_mb)?;
    }
    validate::timeout_sec(body.timeout_sec)?;
    validate::env(&body.env)?;
    validate::metadata(&body.metadata)?;
    validate::network(&body.network)?;
    validate::not_offered("end_after_sec", body.end_after_sec.is_some())?;
    validate::not_offered("on_end", body.on_end.is_some())?;
    validate::not_offered("auto_resume", body.auto_resume)?;
    validate::not_offered("ports", body.ports.is_some())
}

/// Finds a template, and a host that has it.
async fn resolve(
    app: &App,
    team: &TeamId,
    body: &CreateSandbox,
) -> Result<ResolvedTemplate, ServiceError> {
    if let Some(snapshot) = app.store.snapshot(team, &body.template).await? {
        let asked = (
            body.vcpus.unwrap_or(snapshot.vcpus),
            body.memory_mb.unwrap_or(snapshot.memory_mb),
        );
        if asked != (snapshot.vcpus, snapshot.memory_mb) {
            return Err(ServiceError::Invalid(format!(
                "snapshot '{}' has {} vCPUs and {} MiB, and {} vCPUs and {} MiB were asked for; \
                 a snapshot fixes both, so leave them out",
                body.template, snapshot.vcpus, snapshot.memory_mb, asked.0, asked.1
            )));
        }
        let hosts = app.store.hosts().await?;
        let host = hosts.into_iter().find(|host| host.id == snapshot.host);
        return Ok(ResolvedTemplate {
            root_id: host.and_then(|host| host.root_id),
            host: snapshot.host,
            name: snapshot.id.to_string(),
            vcpus: snapshot.vcpus,
            memory_mb: snapshot.memory_mb,
            source: Source::Snapshot(snapshot.id.to_string()),
        });
    }
    // Hosts keep snapshots under such ids: one that is not the team's is not there for it.
    if body.template.parse::<TemplateId>().is_ok() {
        return Err(ServiceError::template_not_found(&body.template));
    }
    let hosts = app.store.hosts().await?;
    let host = hosts
        .into_iter()
        .find(|host| {
            matches!(host.status, HostStatus::Online | HostStatus::Pending)
                && app.hosts.get(&host.id).is_some()
        })
        .ok_or(ServiceError::NoHosts)?;
    Ok(ResolvedTemplate {
        root_id: host.root_id,
        host: host.id,
        name: body.template.clone(),
        vcpus: body.vcpus.unwrap_or(DEFAULT_VCPUS),
        memory_mb: body.memory_mb.unwrap_or(DEFAULT_MEMORY_MB),
        source: Source::Template(body.template.clone()),
    })
}

enum Beginning {
    New,
    /// A server that has ended began it.
    Resumed(Box<SandboxRecord>),
    Replay {
        status: u16,
        body: String,
    },
}

/// Writes the row, and takes the idempotency key.
async fn begin(
    app: &App,
    pending: &SandboxRecord,
    request: Option<&KeyedRequest>,
) -> Result<Beginning, ServiceError> {
    loop {
        let rows = NewRows::Sandboxes(std::slice::from_ref(pending));
        let begun = app
            .store
            .begin_request(rows, request, &app.instance, app.clock.micros())
            .await
            .map_err(|error| match error {
                StoreError::NameTaken => {
                    ServiceError::NameTaken(pending.name.clone().unwrap_or_default())
                }
                error => error.into(),
            })?;
        match begun {
            Begun::New => {
                let mut event = events::event(EventKind::SandboxCreated, app.clock.now());
                event.sandbox_id = Some(pending.id.clone());
                event.status = Some(pending.status);
                event.template = Some(pending.template.clone());
                event.host_id = Some(pending.host.clone());
                app.events.publish(Some(pending.team.clone()), event);
                return Ok(Beginning::New);
            }
            Begun::Replay { status, body } => return Ok(Beginning::Replay { status, body }),
            Begun::InProgress => return Err(ServiceError::IdempotencyInProgress),
            Begun::Mismatch => return Err(ServiceError::IdempotencyMismatch),
            Begun::Adopted(ids) => {
                if let Some(earlier) = adopted(app, &ids).await? {
                    return Ok(Beginning::Resumed(Box::new(earlier)));
                }
                // It came to nothing and was settled: the request begins anew.
                if let Some(request) = request {
                    app.store.forget_request(request).await?;
                }
            }
        }
    }
}

/// The sandbox of an interrupted request, if it is or may still become one that runs.
async fn adopted(app: &App, ids: &[String]) -> Result<Option<SandboxRecord>, ServiceError> {
    let Some(id) = ids.first() else {
        return Ok(None);
    };
    let row = app.store.sandbox_by_id(id).await?;
    Ok(row.filter(|row| {
        row.intent == Intent::Running && matches!(row.status, Status::Pending | Status::Running)
    }))
}

/// A creation whose row is written.
struct Creation {
    app: Arc<App>,
    host_template: String,
    env: BTreeMap<String, String>,
    wait: bool,
    request: Option<KeyedRequest>,
}

impl Creation {
    async fn run(&self, pending: SandboxRecord) -> Result<Sandbox, ServiceError> {
        let app = &self.app;
        let _working = app.working_on(&pending.id);
        let outcome = self.create(&pending).await;
        match (&outcome, &self.request) {
            (Ok(sandbox), Some(request)) => {
                let body = serde_json::to_string(sandbox)
                    .map_err(|error| ServiceError::Internal(error.to_string()))?;
                app.store.finish_request(request, CREATED, &body).await?;
            }
            (Err(_), Some(request)) => app.store.forget_request(request).await?,
            (_, None) => {}
        }
        outcome
    }

    async fn create(&self, pending: &SandboxRecord) -> Result<Sandbox, ServiceError> {
        let app = &self.app;
        let host = app.host(&pending.host)?;
        let observed = match self.ask(pending, &host).await {
            Ok(observed) => observed,
            Err(error) => return Err(self.give_up(pending, &host, error).await),
        };
        let mut running = app.observed(pending, &observed);
        if app.record(pending, &mut running).await? {
            return Ok(running.to_api());
        }
        // Its row changed meanwhile. Adopted by the reconciler it runs; else it was destroyed.
        let row = app.store.sandbox_by_id(pending.id.as_str()).await?;
        if let Some(row) = row.filter(|row| row.intent == Intent::Running) {
            return Ok(row.to_api());
        }
        if let Err(error) = destroy_on(&host, &pending.id).await {
            tracing::warn!(sandbox_id = %pending.id, %error, "failed to destroy a sandbox; the reconciler tries again");
        } else {
            app.record_stopped(pending, None).await?;
        }
        Err(ServiceError::Conflict(format!(
            "sandbox {} was destroyed while it was being created",
            pending.id
        )))
    }

    /// Asks the host, again where its answer was lost: the id makes it the same creation.
    async fn ask(
        &self,
        pending: &SandboxRecord,
        host: &HostClient,
    ) -> Result<Observation, HostError> {
        let fixed = matches!(pending.source, Source::Snapshot(_));
        let resources = (!fixed).then_some(Resources {
            vcpus: pending.vcpus,
            memory_mib: pending.memory_mb,
        });
        let request = CreateSandboxRequest {
            id: pending.id.to_string(),
            template: self.host_template.clone(),
            resources: resources.into(),
            env: self.env.clone().into_iter().collect(),
            metadata: pending.metadata.clone().into_iter().collect(),
            timeout_sec: pending.timeout_sec,
            egress: Some(convert::egress(&pending.network)).into(),
        };
        let mut wait = FIRST_RETRY;
        let mut attempt = 1;
        loop {
            let error = match host.calls.create_sandbox(request.clone()).await {
                Ok(answer) => {
                    let answer = answer.into_owned();
                    match answer.sandbox.as_option().and_then(Observation::of) {
                        Some(observed) => return Ok(observed),
                        None => HostError::Refused {
                            reason: Reason::REASON_INTERNAL,
                            state: None,
                            message: "the host does not say what it created".to_owned(),
                        },
                    }
                }
                Err(error) => HostError::from(error),
            };
            if !matches!(error, HostError::Unreachable(_)) || attempt == ATTEMPTS {
                return Err(error);
            }
            tracing::info!(sandbox_id = %pending.id, attempt, %error, "asking the host again");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.app.shutdown.cancelled() => return Err(error),
            }
            wait *= 2;
            attempt += 1;
        }
    }

    /// Cleans up after a creation that failed, and says why it did.
    async fn give_up(
        &self,
        pending: &SandboxRecord,
        host: &HostClient,
        error: HostError,
    ) -> ServiceError {
        let refused = matches!(error, HostError::Refused { .. });
        let template_is_missing = error.reason() == Some(Reason::REASON_TEMPLATE_NOT_FOUND);
        let error = match ServiceError::of_host(&pending.id, error) {
            ServiceError::NotFound(_) if template_is_missing => {
                ServiceError::template_not_found(&pending.template)
            }
            error => error,
        };
        let reason = error.to_string();
        let cleaned = if refused && !self.wait {
            self.keep_failed(pending, host, &reason).await
        } else {
            self.discard(pending, host, &reason).await
        };
        if let Err(error) = cleaned {
            tracing::warn!(sandbox_id = %pending.id, %error, "failed to clean up after a creation");
        }
        error
    }

    /// Nobody waits: the row tells why there is no sandbox.
    async fn keep_failed(
        &self,
        pending: &SandboxRecord,
        host: &HostClient,
        reason: &str,
    ) -> Result<(), ServiceError> {
        let mut failed = pending.clone();
        failed.status = Status::Error;
        failed.status_reason = Some(reason.to_owned());
        if !self.app.record(pending, &mut failed).await? {
            self.discard(pending, host, reason).await?;
        }
        Ok(())
    }

    /// Nothing of it stays, on its host nor under its name.
    async fn discard(
        &self,
        pending: &SandboxRecord,
        host: &HostClient,
        reason: &str,
    ) -> Result<(), ServiceError> {
        let app = &self.app;
        app.store
            .begin_destroy(&pending.id, Some(reason), app.clock.micros())
            .await?;
        match destroy_on(host, &pending.id).await {
            Ok(()) => app.record_stopped(pending, Some(reason)).await,
            // The reconciler destroys it when the host is back.
            Err(_) => Ok(()),
        }
    }
}
