//! Children of a sandbox, which go on where it is now.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use wrenn_api::error::{ApiError, ErrorCode};
use wrenn_api::id::{SandboxId, TeamId};
use wrenn_api::sandbox::{ForkSandbox, Forked, ForkedItem, MAX_FORK_COUNT, Source};
use wrenn_api::status::Status;
use wrenn_proto::hostagent::ForkSandboxRequest;

use super::create::{Answer, CREATED};
use super::error::ServiceError;
use super::operation::{destroy_on, detached};
use super::{App, validate};
use crate::hosts::client::{HostClient, HostError};
use crate::hosts::convert::Observation;
use crate::store::{Begun, Intent, KeyedRequest, NewRows, SandboxRecord, StoreError};

/// Forks a sandbox. Each child is made or fails for itself.
pub(crate) async fn fork(
    app: &Arc<App>,
    team: &TeamId,
    reference: &str,
    body: ForkSandbox,
    request: Option<KeyedRequest>,
) -> Result<Answer<Forked>, ServiceError> {
    check(&body)?;
    let parent = app.sandbox(team, reference).await?;
    let status = parent.usable_status();
    if !matches!(status, Status::Running | Status::Paused) {
        return Err(ServiceError::wrong_status(&parent.id, status));
    }
    let children: Vec<SandboxRecord> = (0..body.count)
        .zip(
            body.names
                .into_iter()
                .map(Some)
                .chain(std::iter::repeat(None)),
        )
        .map(|(_, name)| child(app, &parent, name))
        .collect();
    let task = Arc::clone(app);
    detached(app, async move {
        let app = task;
        let rows = NewRows::Sandboxes(&children);
        let begun = app
            .store
            .begin_request(rows, request.as_ref(), &app.instance, app.clock.micros())
            .await
            .map_err(|error| match error {
                StoreError::NameTaken => {
                    ServiceError::Conflict("one of the names is taken; choose others".to_owned())
                }
                error => error.into(),
            })?;
        match begun {
            Begun::New => {}
            Begun::Replay { status, body } => return Ok(Answer::Replay { status, body }),
            Begun::InProgress => return Err(ServiceError::IdempotencyInProgress),
            Begun::Mismatch => return Err(ServiceError::IdempotencyMismatch),
            Begun::Adopted(ids) => return interrupted(&app, &ids, request.as_ref()).await,
        }
        let outcome = run(&app, &parent, &children).await;
        if let Some(request) = &request {
            match &outcome {
                Ok(forked) => {
                    let body = serde_json::to_string(forked)
                        .map_err(|error| ServiceError::Internal(error.to_string()))?;
                    app.store.finish_request(request, CREATED, &body).await?;
                }
                Err(_) => app.store.forget_request(request).await?,
            }
        }
        outcome.map(Answer::Fresh)
    })
    .await
}

fn check(body: &ForkSandbox) -> Result<(), ServiceError> {
    validate::not_offered("end_after_sec", body.end_after_sec.is_some())?;
    if !(1..=MAX_FORK_COUNT).contains(&body.count) {
        return Err(ServiceError::Invalid(format!(
            "'count' is {}; give 1 to {MAX_FORK_COUNT}",
            body.count
        )));
    }
    if !body.names.is_empty() && body.names.len() != body.count as usize {
        return Err(ServiceError::Invalid(format!(
            "'names' has {} entries and 'count' is {}; give a name for each child, or none",
            body.names.len(),
            body.count
        )));
    }
    body.names.iter().try_for_each(|name| validate::name(name))
}

fn child(app: &App, parent: &SandboxRecord, name: Option<String>) -> SandboxRecord {
    let now = app.clock.micros();
    SandboxRecord {
        id: SandboxId::random(),
        name,
        source: Source::ForkOf(parent.id.clone()),
        generation: 1,
        intent: Intent::Running,
        status: Status::Pending,
        status_reason: None,
        changed_at: now,
        not_found: 0,
        phases_ms: BTreeMap::new(),
        created_at: now,
        started_at: None,
        last_active_at: Some(now),
        paused_at: None,
        stopped_at: None,
        ..parent.clone()
    }
}

/// Asks the host for the children, and records what became of each.
async fn run(
    app: &Arc<App>,
    parent: &SandboxRecord,
    children: &[SandboxRecord],
) -> Result<Forked, ServiceError> {
    let _working: Vec<_> = children
        .iter()
        .map(|child| app.working_on(&child.id))
        .collect();
    let host = app.host(&parent.host)?;
    let asked = ForkSandboxRequest {
        id: parent.id.to_string(),
        children: children.iter().map(|child| child.id.to_string()).collect(),
    };
    let answer = match host.calls.fork_sandbox(asked).await {
        Ok(answer) => answer.into_owned(),
        Err(error) => {
            let error = ServiceError::of_host(&parent.id, HostError::from(error));
            for child in children {
                discard(app, child, &host, &error.to_string()).await?;
            }
            return Err(error);
        }
    };
    let made: HashMap<&str, Observation> = answer
        .sandboxes
        .iter()
        .filter_map(|made| Some((made.id.as_str(), Observation::of(made)?)))
        .collect();
    let mut items = Vec::with_capacity(children.len());
    for child in children {
        let item = match made.get(child.id.as_str()) {
            Some(observed) => {
                let mut running = app.observed(child, observed);
                app.record(child, &mut running).await?;
                ForkedItem::Sandbox(running.to_api())
            }
            None => {
                let message = answer
                    .failed
                    .get(child.id.as_str())
                    .cloned()
                    .unwrap_or_else(|| "the host does not say what became of it".to_owned());
                discard(app, child, &host, &message).await?;
                ForkedItem::Error(failed(message))
            }
        };
        items.push(item);
    }
    Ok(Forked { items })
}

fn failed(message: String) -> ApiError {
    ApiError {
        code: ErrorCode::AgentError,
        message,
        request_id: String::new(),
        details: serde_json::Map::new(),
    }
}

/// Nothing of a child stays that could not be made.
async fn discard(
    app: &App,
    child: &SandboxRecord,
    host: &HostClient,
    reason: &str,
) -> Result<(), ServiceError> {
    app.store
        .begin_destroy(&child.id, Some(reason), app.clock.micros())
        .await?;
    match destroy_on(host, &child.id).await {
        Ok(()) => app.record_stopped(child, Some(reason)).await,
        // The reconciler destroys it when the host is back.
        Err(_) => Ok(()),
    }
}

/// A server that has ended began the fork. The children that it made are the answer; the
/// reconciler settles the rest.
async fn interrupted(
    app: &App,
    ids: &[String],
    request: Option<&KeyedRequest>,
) -> Result<Answer<Forked>, ServiceError> {
    let mut items = Vec::with_capacity(ids.len());
    for id in ids {
        let row = app.store.sandbox_by_id(id).await?;
        items.push(match row {
            Some(row) if matches!(row.status, Status::Running | Status::Pending) => {
                ForkedItem::Sandbox(row.to_api())
            }
            _ => ForkedItem::Error(failed("the server stopped before it was made".to_owned())),
        });
    }
    let forked = Forked { items };
    if let Some(request) = request {
        let body = serde_json::to_string(&forked)
            .map_err(|error| ServiceError::Internal(error.to_string()))?;
        app.store.finish_request(request, CREATED, &body).await?;
    }
    Ok(Answer::Fresh(forked))
}
