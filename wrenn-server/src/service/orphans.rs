//! Sandboxes that a host has and no row describes: shown, and destroyed on request alone.

use std::sync::Arc;

use wrenn_api::error::shorten;
use wrenn_api::id::SandboxId;
use wrenn_api::server::Orphan;
use wrenn_api::status::Status;

use super::App;
use super::error::ServiceError;
use super::operation::{destroy_on, detached};

pub(crate) async fn list(app: &App) -> Result<Vec<Orphan>, ServiceError> {
    let rows = app.store.orphans().await?;
    Ok(rows
        .into_iter()
        .map(|row| Orphan {
            sandbox_id: row.sandbox_id,
            host_id: row.host_id,
            template: row.template,
            first_seen_at: crate::store::timestamp(row.first_seen_at),
            last_seen_at: crate::store::timestamp(row.last_seen_at),
        })
        .collect())
}

pub(crate) async fn destroy(app: &Arc<App>, id: &str) -> Result<(), ServiceError> {
    let not_found = || {
        ServiceError::NotFound(format!(
            "there is no orphan '{}'; GET /v1/admin/orphans lists those that there are",
            shorten(id)
        ))
    };
    let sandbox: SandboxId = id.parse().map_err(|_| not_found())?;
    let orphans = app.store.orphans().await?;
    let orphan = orphans
        .into_iter()
        .find(|orphan| orphan.sandbox_id == id)
        .ok_or_else(not_found)?;
    // A row that came back meanwhile makes it a sandbox like any other.
    let row = app.store.sandbox_by_id(id).await?;
    if row.is_some_and(|row| row.status != Status::Stopped) {
        return Err(ServiceError::Conflict(format!(
            "sandbox {id} is no orphan any longer; destroy it as a sandbox"
        )));
    }
    let task = Arc::clone(app);
    detached(app, async move {
        let host = task.host(&orphan.host_id)?;
        destroy_on(&host, &sandbox)
            .await
            .map_err(|error| ServiceError::of_host(&sandbox, error))?;
        Ok(task.store.remove_orphan(sandbox.as_str()).await?)
    })
    .await
}
