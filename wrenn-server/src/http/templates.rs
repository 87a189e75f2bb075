//! `/v1/templates`: image templates of hosts, and the team's snapshots.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use wrenn_api::error::ErrorBody;
use wrenn_api::page::{MAX_LIMIT, Page};
use wrenn_api::template::{Template, TemplateKind};

use super::authentication::Caller;
use super::error::HttpError;
use super::extract::{Path, Query};
use crate::service::error::ServiceError;
use crate::service::{App, snapshots};
use crate::store::{SnapshotFilter, SnapshotRecord};

type Answered<T> = Result<T, HttpError>;

/// List templates
///
/// Image templates by their names, then the newest snapshots. `/v1/snapshots` has all of them.
#[utoipa::path(
    get, path = "/v1/templates", tag = "templates",
    params(("type" = Option<String>, Query, description = "`image` or `snapshot`", pattern = "^(image|snapshot)$")),
    responses((status = 200, body = Page<Template>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list_templates(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    mut query: Query,
) -> Answered<Json<Page<Template>>> {
    let kind = query.text("type")?;
    query.finish()?;
    let kind = kind
        .map(|kind| kind.parse::<TemplateKind>())
        .transpose()
        .map_err(|error| HttpError::invalid(error.to_string()))?;
    let mut items = Vec::new();
    if kind != Some(TemplateKind::Snapshot) {
        items = snapshots::image_templates(&app).await?;
    }
    if kind != Some(TemplateKind::Image) {
        let rows = app
            .store
            .snapshot_page(&team, &SnapshotFilter::default(), MAX_LIMIT)
            .await
            .map_err(ServiceError::from)?;
        items.extend(rows.iter().map(SnapshotRecord::to_api));
    }
    Ok(Json(Page {
        items,
        next_cursor: None,
    }))
}

/// Get a template
#[utoipa::path(
    get, path = "/v1/templates/{name}", tag = "templates",
    params(("name" = String, Path, description = "Name or id")),
    responses((status = 200, body = Template), (status = "default", body = ErrorBody))
)]
pub(crate) async fn get_template(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(name): Path<String>,
) -> Answered<Json<Template>> {
    let row = app
        .store
        .snapshot(&team, &name)
        .await
        .map_err(ServiceError::from)?;
    if let Some(row) = row {
        return Ok(Json(row.to_api()));
    }
    Ok(Json(snapshots::image_template(&app, &name).await?))
}
