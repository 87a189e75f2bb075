//! Snapshots of sandboxes, and the templates that hosts have.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use wrenn_api::event::EventKind;
use wrenn_api::id::{TeamId, TemplateId};
use wrenn_api::status::{HostStatus, Status};
use wrenn_api::template::{CreateSnapshot, DeletedSnapshot, Template, TemplateKind};
use wrenn_proto::hostagent::{
    CreateSnapshotRequest, DeleteSnapshotRequest, ListTemplatesRequest, Reason,
};

use super::create::{Answer, CREATED};
use super::error::ServiceError;
use super::operation::detached;
use super::{App, events, validate};
use crate::hosts::client::{HostClient, HostError};
use crate::store::{Begun, KeyedRequest, Lease, NewRows, Published, SnapshotRecord, StoreError};

/// How long a host may take to list its templates.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// Snapshots a sandbox, which goes on.
pub(crate) async fn create(
    app: &Arc<App>,
    team: &TeamId,
    body: CreateSnapshot,
    overwrite: bool,
    request: Option<KeyedRequest>,
) -> Result<Answer<Template>, ServiceError> {
    if let Some(name) = &body.name {
        validate::name(name)?;
        // Looked up for a good answer before the work; the index decides.
        if !overwrite && app.store.snapshot(team, name).await?.is_some() && request.is_none() {
            return Err(ServiceError::SnapshotNameTaken(name.clone()));
        }
    }
    let sandbox = app.sandbox(team, &body.sandbox_id).await?;
    let status = sandbox.usable_status();
    if !matches!(status, Status::Running | Status::Paused) {
        return Err(ServiceError::wrong_status(&sandbox.id, status));
    }
    let snapshot = SnapshotRecord {
        id: TemplateId::random(),
        team: team.clone(),
        host: sandbox.host.clone(),
        name: body.name,
        source: sandbox.id.clone(),
        parent: sandbox.template.clone(),
        vcpus: sandbox.vcpus,
        memory_mb: sandbox.memory_mb,
        disk_bytes: 0,
        created_at: app.clock.micros(),
    };
    let task = Arc::clone(app);
    detached(app, async move {
        let app = task;
        loop {
            let rows = NewRows::Snapshot(&snapshot);
            let begun = app
                .store
                .begin_request(rows, request.as_ref(), &app.instance, app.clock.micros())
                .await?;
            match begun {
                Begun::New => break,
                Begun::Replay { status, body } => return Ok(Answer::Replay { status, body }),
                Begun::InProgress => return Err(ServiceError::IdempotencyInProgress),
                Begun::Mismatch => return Err(ServiceError::IdempotencyMismatch),
                // A snapshot that was not published has no name and no user: the reconciler
                // discards it, and the request begins anew.
                Begun::Adopted(ids) => {
                    if let Some(request) = &request {
                        if let Some(done) = published(&app, team_of(request), &ids).await? {
                            return Ok(Answer::Fresh(done));
                        }
                        app.store.forget_request(request).await?;
                    }
                }
            }
        }
        let outcome = run(&app, snapshot, overwrite).await;
        if let Some(request) = &request {
            match &outcome {
                Ok(template) => {
                    let body = serde_json::to_string(template)
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

fn team_of(request: &KeyedRequest) -> &TeamId {
    &request.team
}

async fn published(
    app: &App,
    team: &TeamId,
    ids: &[String],
) -> Result<Option<Template>, ServiceError> {
    let Some(id) = ids.first() else {
        return Ok(None);
    };
    let row = app.store.snapshot(team, id).await?;
    Ok(row.map(|row| row.to_api()))
}

async fn run(
    app: &Arc<App>,
    mut snapshot: SnapshotRecord,
    overwrite: bool,
) -> Result<Template, ServiceError> {
    let host = match app.host(&snapshot.host) {
        Ok(host) => host,
        Err(error) => {
            app.store.remove_snapshot(None, &snapshot.id).await?;
            return Err(error);
        }
    };
    let asked = CreateSnapshotRequest {
        id: snapshot.source.to_string(),
        name: snapshot.id.to_string(),
    };
    let made = match host.calls.create_snapshot(asked).await {
        Ok(answer) => answer.into_owned().snapshot.into_option(),
        Err(error) => {
            let error = HostError::from(error);
            // One whose answer was lost may still be made: the reconciler discards it.
            if matches!(error, HostError::Refused { .. }) {
                app.store.remove_snapshot(None, &snapshot.id).await?;
            }
            return Err(ServiceError::of_host(&snapshot.source, error));
        }
    };
    if let Some(made) = made {
        snapshot.disk_bytes = made.disk_bytes;
        if let Some(resources) = made.resources.as_option() {
            snapshot.vcpus = resources.vcpus;
            snapshot.memory_mb = resources.memory_mib;
        }
    }
    let replaced = match app.store.publish_snapshot(&snapshot, overwrite).await {
        Ok(Published::Ready { replaced }) => replaced,
        Ok(Published::Discarded) => {
            delete_discarded(&host, &snapshot).await;
            return Err(ServiceError::Conflict(
                "the snapshot took so long that it was discarded; try again".to_owned(),
            ));
        }
        Err(StoreError::NameTaken) => {
            discard(app, None, &snapshot).await?;
            return Err(ServiceError::SnapshotNameTaken(
                snapshot.name.unwrap_or_default(),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(old) = replaced {
        finish_delete(app, None, &old).await;
    }
    let mut event = events::event(EventKind::SnapshotCreated, app.clock.now());
    event.sandbox_id = Some(snapshot.source.clone());
    event.template = Some(snapshot.id.to_string());
    app.events.publish(Some(snapshot.team.clone()), event);
    Ok(snapshot.to_api())
}

/// Deletes a snapshot. Sandboxes that were made from it keep what they need of it.
pub(crate) async fn delete(
    app: &Arc<App>,
    team: &TeamId,
    reference: &str,
) -> Result<DeletedSnapshot, ServiceError> {
    let snapshot = app.store.snapshot(team, reference).await?;
    let snapshot = snapshot.ok_or_else(|| ServiceError::snapshot_not_found(reference))?;
    let task = Arc::clone(app);
    detached(app, async move {
        let app = task;
        app.store.begin_delete_snapshot(&snapshot.id).await?;
        let still_needed_by = finish_delete(&app, None, &snapshot).await;
        let mut event = events::event(EventKind::SnapshotDeleted, app.clock.now());
        event.template = Some(snapshot.id.to_string());
        app.events.publish(Some(snapshot.team.clone()), event);
        Ok(DeletedSnapshot { still_needed_by })
    })
    .await
}

/// Deletes a snapshot on its host and then its row. Where the host is away, the reconciler
/// does both later. Gives the sandboxes that still need it.
pub(crate) async fn finish_delete(
    app: &App,
    lease: Option<&Lease>,
    snapshot: &SnapshotRecord,
) -> Vec<String> {
    let Ok(host) = app.host(&snapshot.host) else {
        return Vec::new();
    };
    let users = match delete_on(&host, &snapshot.id).await {
        Ok(users) => users,
        Err(error) => {
            tracing::info!(snapshot = %snapshot.id, %error, "deleting a snapshot later");
            return Vec::new();
        }
    };
    if let Err(error) = app.store.remove_snapshot(lease, &snapshot.id).await {
        tracing::warn!(snapshot = %snapshot.id, %error, "failed to remove a snapshot's row");
    }
    users
}

/// Gives up a snapshot that was not published, and deletes what its host has of it by now. Its
/// row stays, since the host may still be making it.
pub(crate) async fn discard(
    app: &App,
    lease: Option<&Lease>,
    snapshot: &SnapshotRecord,
) -> Result<(), ServiceError> {
    if app.store.discard_snapshot(lease, &snapshot.id).await?
        && let Ok(host) = app.host(&snapshot.host)
    {
        delete_discarded(&host, snapshot).await;
    }
    Ok(())
}

/// Deletes a discarded snapshot on its host. Where that fails, the reconciler tries again.
pub(crate) async fn delete_discarded(host: &HostClient, snapshot: &SnapshotRecord) {
    match delete_on(host, &snapshot.id).await {
        Ok(_) => tracing::info!(snapshot = %snapshot.id, "deleted a snapshot that was discarded"),
        Err(error) => {
            tracing::warn!(snapshot = %snapshot.id, %error, "failed to delete a discarded snapshot");
        }
    }
}

/// Deletes a snapshot on its host. One that is not there is no error.
async fn delete_on(host: &HostClient, id: &TemplateId) -> Result<Vec<String>, HostError> {
    let request = DeleteSnapshotRequest {
        name: id.to_string(),
    };
    match host.calls.delete_snapshot(request).await {
        Ok(answer) => Ok(answer.into_owned().still_needed_by),
        Err(error) => match HostError::from(error) {
            error if error.reason() == Some(Reason::REASON_SNAPSHOT_NOT_FOUND) => Ok(Vec::new()),
            error => Err(error),
        },
    }
}

/// Image templates of all hosts that are online, by name.
pub(crate) async fn image_templates(app: &App) -> Result<Vec<Template>, ServiceError> {
    let mut templates = BTreeMap::new();
    let hosts = app.store.hosts().await?;
    let mut answered = false;
    for host in hosts {
        let Some(client) = app.hosts.get(&host.id) else {
            continue;
        };
        if host.status == HostStatus::Unreachable {
            continue;
        }
        let listing = client.calls.list_templates(ListTemplatesRequest::default());
        let listed = match tokio::time::timeout(LIST_TIMEOUT, listing).await {
            Ok(Ok(listed)) => listed.into_owned(),
            Ok(Err(error)) => {
                tracing::warn!(host = %host.name, %error, "failed to list templates");
                continue;
            }
            Err(_) => {
                tracing::warn!(host = %host.name, "failed to list templates in time");
                continue;
            }
        };
        answered = true;
        for template in listed.templates {
            let bytes = template.size_mib << 20;
            templates.entry(template.name.clone()).or_insert(Template {
                id: None,
                name: Some(template.name),
                kind: TemplateKind::Image,
                vcpus: None,
                memory_mb: None,
                disk_bytes: Some(bytes),
                source_sandbox_id: None,
                parent: None,
                created_at: None,
            });
        }
    }
    if !answered {
        return Err(ServiceError::NoHosts);
    }
    Ok(templates.into_values().collect())
}

/// Names of image templates, for looking one up.
pub(crate) async fn image_template(app: &App, name: &str) -> Result<Template, ServiceError> {
    let all = image_templates(app).await?;
    let names: HashSet<_> = all
        .iter()
        .filter_map(|template| template.name.as_deref())
        .collect();
    if !names.contains(name) {
        return Err(ServiceError::template_not_found(name));
    }
    all.into_iter()
        .find(|template| template.name.as_deref() == Some(name))
        .ok_or_else(|| ServiceError::template_not_found(name))
}
