//! `/v1/admin/orphans`: sandboxes that a host has and no row describes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use wrenn_api::error::ErrorBody;
use wrenn_api::page::Page;
use wrenn_api::server::Orphan;

use super::authentication::Caller;
use super::error::HttpError;
use super::extract::Path;
use crate::service::{App, orphans};

/// List orphans
///
/// Sandboxes that a host has and the database does not know, as after a restored backup. They
/// are paused and never destroyed by the server itself.
#[utoipa::path(
    get, path = "/v1/admin/orphans", tag = "admin",
    responses((status = 200, body = Page<Orphan>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list_orphans(
    State(app): State<Arc<App>>,
    Caller(_): Caller,
) -> Result<Json<Page<Orphan>>, HttpError> {
    Ok(Json(Page {
        items: orphans::list(&app).await?,
        next_cursor: None,
    }))
}

/// Destroy an orphan
#[utoipa::path(
    delete, path = "/v1/admin/orphans/{id}", tag = "admin",
    params(("id" = String, Path, description = "The id of the sandbox")),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn destroy_orphan(
    State(app): State<Arc<App>>,
    Caller(_): Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, HttpError> {
    orphans::destroy(&app, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
