//! The description of the API, OpenAPI 3.1, made from the routes.

use std::sync::LazyLock;

use utoipa::OpenApi as _;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi, RefOr};
use utoipa_axum::router::OpenApiRouter;

use super::router;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Wrenn",
        description = "Sandboxes for untrusted code: microVMs that are created in milliseconds, \
            run commands, move files, pause to disk and become templates.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(
        wrenn_api::stream::ClientMessage,
        wrenn_api::stream::ServerMessage,
        wrenn_api::file::WatchMessage,
    )),
    security(("api_key" = []), ("bearer" = [])),
    tags(
        (name = "sandboxes", description = "Create, find, pause, resume, fork, destroy"),
        (name = "exec", description = "Commands and processes"),
        (name = "files", description = "Files and directories of a sandbox"),
        (name = "snapshots", description = "Running sandboxes as templates"),
        (name = "templates", description = "What sandboxes are created from"),
        (name = "events", description = "What changes"),
        (name = "admin", description = "For who runs the server"),
        (name = "server", description = "The server itself"),
    )
)]
struct Frame;

static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(|| {
    let (_, mut document) = OpenApiRouter::with_openapi(Frame::openapi())
        .merge(router::described())
        .split_for_parts();
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.patch,
        ];
        for operation in operations.into_iter().flatten() {
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    response.description = describe(status);
                }
            }
        }
    }
    let components = document.components.get_or_insert_default();
    let key = ApiKey::Header(ApiKeyValue::new("X-API-Key"));
    components.add_security_scheme("api_key", SecurityScheme::ApiKey(key));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    document
});

/// What a status says; OpenAPI wants a description of each.
fn describe(status: &str) -> String {
    status
        .parse::<u16>()
        .ok()
        .and_then(|status| http::StatusCode::from_u16(status).ok()?.canonical_reason())
        .unwrap_or("Any error")
        .to_owned()
}

/// The description.
#[must_use]
pub fn document() -> OpenApi {
    DOCUMENT.clone()
}

/// The description as YAML.
#[must_use]
pub fn yaml() -> String {
    // The document is made of strings and maps, which YAML and JSON can hold.
    DOCUMENT.to_yaml().unwrap_or_default()
}

/// The description as JSON.
#[must_use]
pub fn json() -> String {
    DOCUMENT.to_pretty_json().unwrap_or_default()
}
