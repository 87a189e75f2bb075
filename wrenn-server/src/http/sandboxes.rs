//! `/v1/sandboxes`: create, list, get, change, pause, resume, ping, fork, destroy.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wrenn_api::error::ErrorBody;
use wrenn_api::page::Page;
use wrenn_api::sandbox::{
    CreateSandbox, ForkSandbox, Forked, PauseSandbox, PingSandbox, ResumeSandbox, Sandbox,
    UpdateSandbox,
};
use wrenn_api::status::Status;

use super::authentication::Caller;
use super::error::HttpError;
use super::extract::{Body, Path, Query};
use super::idempotency::{self, IdempotencyKey};
use crate::service::lifecycle::{self, Destroyed};
use crate::service::{App, create, fork};
use crate::store::{Micros, SandboxFilter, SandboxRecord};

/// The longest wait of `GET /v1/sandboxes/{id}`.
const MAX_WAIT_MS: u64 = 60_000;
const DEFAULT_WAIT_MS: u64 = 30_000;
/// How many rows are looked at for a page whose metadata is filtered.
const MAX_SCANNED: usize = 100_000;

type Answered<T> = Result<T, HttpError>;

/// Create a sandbox
///
/// The answer comes when it runs; with `wait: false` at once, while it is `pending`.
#[utoipa::path(
    post, path = "/v1/sandboxes", tag = "sandboxes",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key gives the same sandbox for 24 h", min_length = 1, max_length = 255, pattern = "^[ -~]+$")),
    request_body = CreateSandbox,
    responses((status = 201, body = Sandbox), (status = "default", body = ErrorBody))
)]
pub(crate) async fn create_sandbox(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    key: IdempotencyKey,
    Body(body, bytes): Body<CreateSandbox>,
) -> Answered<Response> {
    let request = key.bind(&team, &bytes);
    let answer = create::create(&app, &team, body, request).await?;
    Ok(idempotency::created(answer))
}

/// List sandboxes
///
/// The newest first. Stopped ones only where `status=stopped` asks for them.
#[utoipa::path(
    get, path = "/v1/sandboxes", tag = "sandboxes",
    params(
        ("status" = Option<String>, Query, description = "Statuses, separated by commas", pattern = "^(pending|running|pausing|paused|resuming|error|missing|stopped)(,(pending|running|pausing|paused|resuming|error|missing|stopped))*$"),
        ("template" = Option<String>, Query, description = "Only those of this template"),
        ("name" = Option<String>, Query, description = "Only the one of this name"),
        ("metadata" = Option<Vec<String>>, Query, description = "`key=value`; may be given often"),
        ("started_after" = Option<String>, Query, description = "RFC 3339; only those created after it"),
        ("order" = Option<String>, Query, description = "`desc` (default) or `asc`, by creation", pattern = "^(asc|desc)$"),
        ("limit" = Option<u32>, Query, description = "1 to 100", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = Page<Sandbox>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list_sandboxes(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    mut query: Query,
) -> Answered<Json<Page<Sandbox>>> {
    let limit = query.limit()?;
    let (mut filter, metadata, fingerprint) = filter(&mut query)?;
    if let Some(cursor) = query.text("cursor")? {
        filter.after = Some(Cursor::decode(&cursor, &fingerprint)?);
    }
    query.finish()?;
    let mut items = Vec::new();
    let mut scanned = 0;
    // One more than asked for tells whether there is another page.
    let next = loop {
        let wanted = limit + 1;
        let rows = app
            .store
            .sandbox_page(&team, &filter, wanted)
            .await
            .map_err(service)?;
        let read = rows.len();
        scanned += read;
        let mut last = None;
        for row in rows {
            if items.len() == limit as usize {
                break;
            }
            last = Some((row.created_at, row.id.to_string()));
            if has(&row, &metadata) {
                items.push(row);
            }
        }
        let full = items.len() == limit as usize;
        let more = read == wanted as usize;
        filter.after = last.or(filter.after);
        if !more {
            break (full && read > limit as usize)
                .then(|| filter.after.clone())
                .flatten();
        }
        if full || scanned >= MAX_SCANNED {
            break filter.after.clone();
        }
    };
    Ok(Json(Page {
        items: items.iter().map(SandboxRecord::to_api).collect(),
        next_cursor: next.map(|(created_at, id)| Cursor::encode(created_at, &id, &fingerprint)),
    }))
}

fn service(error: crate::store::StoreError) -> HttpError {
    crate::service::error::ServiceError::from(error).into()
}

fn has(row: &SandboxRecord, metadata: &[(String, String)]) -> bool {
    metadata
        .iter()
        .all(|(name, value)| row.metadata.get(name) == Some(value))
}

/// Names and values that a sandbox must have.
type Metadata = Vec<(String, String)>;

/// The filter of a query, its metadata, and a text that is the same for the same filter.
fn filter(query: &mut Query) -> Answered<(SandboxFilter, Metadata, String)> {
    let status = query.text("status")?;
    let template = query.text("template")?;
    let name = query.text("name")?;
    let started_after = query.text("started_after")?;
    let order = query.text("order")?;
    let metadata = query.all("metadata");
    let fingerprint =
        format!("{status:?}{template:?}{name:?}{started_after:?}{order:?}{metadata:?}");

    let statuses = match &status {
        None => Status::ALL
            .iter()
            .copied()
            .filter(|status| *status != Status::Stopped)
            .collect(),
        Some(list) => list
            .split(',')
            .map(|word| word.trim().parse::<Status>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| HttpError::invalid(error.to_string()))?,
    };
    let ascending = match order.as_deref() {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(other) => {
            return Err(HttpError::invalid(format!(
                "'order' is '{}'; give asc or desc",
                wrenn_api::error::shorten(other)
            )));
        }
    };
    let started_after = started_after
        .map(|text| parse_time("started_after", &text))
        .transpose()?;
    let metadata = metadata
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(HttpError::invalid(format!(
                "'metadata' is '{}'; give key=value",
                wrenn_api::error::shorten(pair)
            ))),
        })
        .collect::<Answered<Vec<_>>>()?;
    let filter = SandboxFilter {
        statuses,
        template,
        name,
        started_after,
        ascending,
        after: None,
    };
    Ok((filter, metadata, fingerprint))
}

fn parse_time(name: &str, text: &str) -> Answered<Micros> {
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        HttpError::invalid(format!(
            "'{name}' is '{}'; give a time like 2026-01-31T12:00:00Z",
            wrenn_api::error::shorten(text)
        ))
    })?;
    Ok(i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX))
}

/// Where a page ends, and of which list it is.
#[derive(Serialize, Deserialize)]
pub(crate) struct Cursor {
    at: Micros,
    id: String,
    of: String,
}

impl Cursor {
    pub(crate) fn encode(at: Micros, id: &str, fingerprint: &str) -> String {
        let cursor = Self {
            at,
            id: id.to_owned(),
            of: digest(fingerprint),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&cursor).unwrap_or_default())
    }

    pub(crate) fn decode(text: &str, fingerprint: &str) -> Answered<(Micros, String)> {
        let cursor = URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .ok_or_else(|| HttpError::invalid("'cursor' is not one of this server"))?;
        if cursor.of != digest(fingerprint) {
            return Err(HttpError::invalid(
                "'cursor' is of a list with other filters; repeat those, or begin without it",
            ));
        }
        Ok((cursor.at, cursor.id))
    }
}

fn digest(text: &str) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(text);
    URL_SAFE_NO_PAD.encode(&digest[..9])
}

/// Get a sandbox
///
/// With `wait_for`, the answer comes when the sandbox has that status, has ended, or after
/// `wait_ms`: it is then what it is, and no error.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}", tag = "sandboxes",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("wait_for" = Option<String>, Query, description = "Statuses, separated by commas", pattern = "^(pending|running|pausing|paused|resuming|error|missing|stopped)(,(pending|running|pausing|paused|resuming|error|missing|stopped))*$"),
        ("wait_ms" = Option<u64>, Query, description = "How long to wait, at most 60000", maximum = 60000),
    ),
    responses((status = 200, body = Sandbox), (status = "default", body = ErrorBody))
)]
pub(crate) async fn get_sandbox(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    mut query: Query,
) -> Answered<Json<Sandbox>> {
    let wait_for = query.text("wait_for")?;
    let wait_ms: Option<u64> = query.parse("wait_ms", "a number of milliseconds")?;
    query.finish()?;
    let wait_ms = wait_ms.unwrap_or(DEFAULT_WAIT_MS);
    if wait_ms > MAX_WAIT_MS {
        return Err(HttpError::invalid(format!(
            "'wait_ms' is {wait_ms}; give at most {MAX_WAIT_MS}"
        )));
    }
    let Some(wait_for) = wait_for else {
        return Ok(Json(app.sandbox(&team, &id).await?.to_api()));
    };
    let statuses = wait_for
        .split(',')
        .map(|word| word.trim().parse::<Status>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| HttpError::invalid(error.to_string()))?;
    let limit = Duration::from_millis(wait_ms);
    let sandbox = lifecycle::wait_for(&app, &team, &id, &statuses, limit).await?;
    Ok(Json(sandbox.to_api()))
}

/// Change a sandbox
#[utoipa::path(
    patch, path = "/v1/sandboxes/{id}", tag = "sandboxes",
    params(("id" = String, Path, description = "Id or name")),
    request_body = UpdateSandbox,
    responses((status = 200, body = Sandbox), (status = "default", body = ErrorBody))
)]
pub(crate) async fn update_sandbox(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<UpdateSandbox>,
) -> Answered<Json<Sandbox>> {
    Ok(Json(lifecycle::update(&app, &team, &id, body).await?))
}

/// Destroy a sandbox
///
/// Works from every status. 202 says that its host is away: it is destroyed when it is back.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{id}", tag = "sandboxes",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 204), (status = 202), (status = "default", body = ErrorBody))
)]
pub(crate) async fn destroy_sandbox(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
) -> Answered<Response> {
    Ok(match lifecycle::destroy(&app, &team, &id).await? {
        Destroyed::Now => StatusCode::NO_CONTENT,
        Destroyed::Later => StatusCode::ACCEPTED,
    }
    .into_response())
}

/// Pause a sandbox
///
/// Its memory and disk are snapshotted, and its host gets all else back. One that is paused
/// already is no error.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/pause", tag = "sandboxes",
    params(("id" = String, Path, description = "Id or name")),
    request_body = PauseSandbox,
    responses((status = 200, body = Sandbox), (status = "default", body = ErrorBody))
)]
pub(crate) async fn pause_sandbox(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<PauseSandbox>,
) -> Answered<Json<Sandbox>> {
    Ok(Json(lifecycle::pause(&app, &team, &id, body).await?))
}

/// Resume a sandbox
///
/// It goes on where it was paused. One that runs already is no error.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/resume", tag = "sandboxes",
    params(("id" = String, Path, description = "Id or name")),
    request_body = ResumeSandbox,
    responses((status = 200, body = Sandbox), (status = "default", body = ErrorBody))
)]
pub(crate) async fn resume_sandbox(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<ResumeSandbox>,
) -> Answered<Json<Sandbox>> {
    Ok(Json(lifecycle::resume(&app, &team, &id, body).await?))
}

/// Keep a sandbox awake
///
/// Counts as use, and may change its idle timeout.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/ping", tag = "sandboxes",
    params(("id" = String, Path, description = "Id or name")),
    request_body = PingSandbox,
    responses((status = 200, body = Sandbox), (status = "default", body = ErrorBody))
)]
pub(crate) async fn ping_sandbox(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<PingSandbox>,
) -> Answered<Json<Sandbox>> {
    Ok(Json(lifecycle::ping(&app, &team, &id, body).await?))
}

/// Fork a sandbox
///
/// Children go on where it is now, each with its own id. Each is made or fails for itself.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/fork", tag = "sandboxes",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key gives the same children for 24 h", min_length = 1, max_length = 255, pattern = "^[ -~]+$"),
    ),
    request_body = ForkSandbox,
    responses((status = 201, body = Forked), (status = "default", body = ErrorBody))
)]
pub(crate) async fn fork_sandbox(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    key: IdempotencyKey,
    Body(body, bytes): Body<ForkSandbox>,
) -> Answered<Response> {
    let request = key.bind(&team, &bytes);
    let answer = fork::fork(&app, &team, &id, body, request).await?;
    Ok(idempotency::created(answer))
}
