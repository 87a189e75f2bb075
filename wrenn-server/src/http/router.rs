//! All routes, with the layers that every request passes.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware;
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::error::{self, HttpError};
use super::{
    events, exec, exec_stream, files, guard, logs, orphans, pages, sandboxes, server_info,
    snapshots, templates, transfers,
};
use crate::service::App;

/// Routes that the description has.
pub(crate) fn described() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(
            sandboxes::create_sandbox,
            sandboxes::list_sandboxes
        ))
        .routes(routes!(
            sandboxes::get_sandbox,
            sandboxes::update_sandbox,
            sandboxes::destroy_sandbox
        ))
        .routes(routes!(sandboxes::pause_sandbox))
        .routes(routes!(sandboxes::resume_sandbox))
        .routes(routes!(sandboxes::ping_sandbox))
        .routes(routes!(sandboxes::fork_sandbox))
        .routes(routes!(exec::exec))
        .routes(routes!(exec_stream::exec_stream))
        .routes(routes!(exec::list_processes))
        .routes(routes!(exec::signal_process))
        .routes(routes!(exec_stream::process_stream))
        .routes(routes!(exec::metrics))
        .routes(routes!(logs::logs))
        .routes(routes!(files::write_file))
        .routes(routes!(files::read_file))
        .routes(routes!(transfers::stream_write))
        .routes(routes!(transfers::stream_read))
        .routes(routes!(transfers::content))
        .routes(routes!(files::list_files))
        .routes(routes!(files::stat_file))
        .routes(routes!(files::make_dir))
        .routes(routes!(files::move_file))
        .routes(routes!(files::remove_file))
        .routes(routes!(transfers::read_archive, transfers::write_archive))
        .routes(routes!(files::watch_files))
        .routes(routes!(
            snapshots::create_snapshot,
            snapshots::list_snapshots
        ))
        .routes(routes!(snapshots::delete_snapshot))
        .routes(routes!(templates::list_templates))
        .routes(routes!(templates::get_template))
        .routes(routes!(events::events))
        .routes(routes!(orphans::list_orphans))
        .routes(routes!(orphans::destroy_orphan))
        .routes(routes!(server_info::server_info))
        .routes(routes!(server_info::log_in_locally))
}

/// Every route of a server.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let (described, _) = described().split_for_parts();
    let docs = SwaggerUi::new("/docs").config(Config::from("/openapi.json"));
    described
        .route("/healthz", get(pages::healthz))
        .route("/readyz", get(pages::readyz))
        .route("/openapi.yaml", get(pages::openapi_yaml))
        .route("/openapi.json", get(pages::openapi_json))
        .route("/test", get(pages::test_page))
        .merge(docs)
        .fallback(fallback)
        .method_not_allowed_fallback(method_not_allowed)
        // Each handler bounds its body itself: uploads have no bound.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(
            Arc::clone(app),
            guard::guard,
        ))
        .with_state(Arc::clone(app))
}

async fn fallback(request: Request) -> HttpError {
    error::not_found(request.uri().path())
}

async fn method_not_allowed(request: Request) -> HttpError {
    error::method_not_allowed(request.method().as_str(), request.uri().path())
}
