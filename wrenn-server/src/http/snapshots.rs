//! `/v1/snapshots`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use wrenn_api::error::ErrorBody;
use wrenn_api::page::Page;
use wrenn_api::template::{CreateSnapshot, DeletedSnapshot, Template};

use super::authentication::Caller;
use super::error::HttpError;
use super::extract::{Body, Path, Query};
use super::idempotency::{self, IdempotencyKey};
use super::sandboxes::Cursor;
use crate::service::error::ServiceError;
use crate::service::{App, snapshots};
use crate::store::{SnapshotFilter, SnapshotRecord};

type Answered<T> = Result<T, HttpError>;

/// Snapshot a sandbox
///
/// The sandbox goes on. Sandboxes can be created from the snapshot as from a template.
#[utoipa::path(
    post, path = "/v1/snapshots", tag = "snapshots",
    params(
        ("overwrite" = Option<bool>, Query, description = "Whether a snapshot of this name is replaced"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key gives the same snapshot for 24 h", min_length = 1, max_length = 255, pattern = "^[ -~]+$"),
    ),
    request_body = CreateSnapshot,
    responses((status = 201, body = Template), (status = "default", body = ErrorBody))
)]
pub(crate) async fn create_snapshot(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    key: IdempotencyKey,
    mut query: Query,
    Body(body, bytes): Body<CreateSnapshot>,
) -> Answered<Response> {
    let overwrite = query.flag("overwrite")?;
    query.finish()?;
    let request = key.bind(&team, &bytes);
    let answer = snapshots::create(&app, &team, body, overwrite, request).await?;
    Ok(idempotency::created(answer))
}

/// List snapshots
///
/// The newest first.
#[utoipa::path(
    get, path = "/v1/snapshots", tag = "snapshots",
    params(
        ("sandbox_id" = Option<String>, Query, description = "Only those of this sandbox"),
        ("name" = Option<String>, Query, description = "Only the one of this name"),
        ("limit" = Option<u32>, Query, description = "1 to 100", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = Page<Template>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list_snapshots(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    mut query: Query,
) -> Answered<Json<Page<Template>>> {
    let limit = query.limit()?;
    let cursor = query.text("cursor")?;
    let (page, next_cursor) = page(&app, &team, &mut query, limit, cursor).await?;
    query.finish()?;
    Ok(Json(Page {
        items: page.iter().map(SnapshotRecord::to_api).collect(),
        next_cursor,
    }))
}

/// One page of snapshots, and the cursor of the next.
async fn page(
    app: &App,
    team: &wrenn_api::id::TeamId,
    query: &mut Query,
    limit: u32,
    cursor: Option<String>,
) -> Answered<(Vec<SnapshotRecord>, Option<String>)> {
    let source = query.text("sandbox_id")?;
    let name = query.text("name")?;
    let fingerprint = format!("snapshots{source:?}{name:?}");
    let after = cursor
        .map(|cursor| Cursor::decode(&cursor, &fingerprint))
        .transpose()?;
    let filter = SnapshotFilter {
        source,
        name,
        after,
    };
    let mut rows = app
        .store
        .snapshot_page(team, &filter, limit + 1)
        .await
        .map_err(ServiceError::from)?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| more);
    let next = next.map(|last| Cursor::encode(last.created_at, last.id.as_str(), &fingerprint));
    Ok((rows, next))
}

/// Delete a snapshot
///
/// Sandboxes that were created from it keep what they need of it; the answer names them.
#[utoipa::path(
    delete, path = "/v1/snapshots/{name}", tag = "snapshots",
    params(("name" = String, Path, description = "Name or id")),
    responses((status = 200, body = DeletedSnapshot), (status = "default", body = ErrorBody))
)]
pub(crate) async fn delete_snapshot(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(name): Path<String>,
) -> Answered<Json<DeletedSnapshot>> {
    Ok(Json(snapshots::delete(&app, &team, &name).await?))
}
