//! Logs: the console of a sandbox, and the output of its template's start command.
//!
//! The console is kept by the host. The output of the start command is kept by the guest daemon,
//! which finds the command by its tag.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http::HeaderValue;
use http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use tokio::time::{Instant, timeout_at};
use wrenn_api::error::ErrorBody;
use wrenn_api::id::{SandboxId, TeamId};
use wrenn_api::stream::{Connect, Offsets};
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::__buffa::oneof::process_event::Event;
use wrenn_proto::hostagent::{FollowConsoleRequest, GetConsoleRequest};

use super::authentication::Caller;
use super::error::HttpError;
use super::exec_stream::Command;
use super::extract::{Path, Query};
use crate::hosts::client::HostClient;
use crate::service::App;
use crate::service::error::ServiceError;

/// The most of a log that comes before what is followed, or at all.
const MAX_LOG_BYTES: u32 = 1 << 20;
/// The default of `tail`.
const DEFAULT_LOG_BYTES: u32 = 64 << 10;
/// The tag that hosts give to a template's start command.
const START_TAG: &str = "start";
/// A command that printed nothing for so long has printed what it had.
const QUIET_TIME: Duration = Duration::from_millis(300);
/// How long the output is read of a command that is never quiet.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

type Answered<T> = Result<T, HttpError>;

/// Which part of a log is wanted.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    max_bytes: u32,
    from_start: bool,
    follow: bool,
}

/// The console of a sandbox, or the output of its start command
///
/// The console is what its kernel and its first processes print; looking at it is no use of the
/// sandbox. `source=start` is what the start command of its template printed, as far as the
/// guest keeps it (the last megabytes, and half a minute after its end); the sandbox must run,
/// and following it is use, as for each command.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/logs", tag = "sandboxes",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("source" = Option<String>, Query, description = "`console` (default) or `start`", pattern = "^(console|start)$"),
        ("tail" = Option<u32>, Query, description = "How many bytes of the end; 65536 unless set", maximum = 1048576),
        ("start" = Option<bool>, Query, description = "From the beginning, and not the end"),
        ("follow" = Option<bool>, Query, description = "Go on with what is added"),
    ),
    responses((status = 200, body = String, content_type = "text/plain"), (status = "default", body = ErrorBody))
)]
pub(crate) async fn logs(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    mut query: Query,
) -> Answered<Response> {
    let source = query.text("source")?;
    let max_bytes: u32 = query.parse("tail", "a number of bytes")?.unwrap_or(0);
    let from_start = query.flag("start")?;
    let follow = query.flag("follow")?;
    query.finish()?;
    if max_bytes > MAX_LOG_BYTES {
        return Err(HttpError::invalid(format!(
            "'tail' is {max_bytes}; give at most {MAX_LOG_BYTES}"
        )));
    }
    let wanted = Wanted {
        max_bytes,
        from_start,
        follow,
    };
    match source.as_deref() {
        None | Some("console") => console(&app, &team, &id, wanted).await,
        Some("start") => start_command(&app, &team, &id, wanted).await,
        Some(_) => Err(HttpError::invalid(
            "'source' is not known; give console or start",
        )),
    }
}

async fn console(app: &App, team: &TeamId, reference: &str, wanted: Wanted) -> Answered<Response> {
    let sandbox = app.sandbox(team, reference).await?;
    let host = app.host(&sandbox.host)?;
    let sandbox_id = sandbox.id.to_string();
    if !wanted.follow {
        let request = GetConsoleRequest {
            id: sandbox_id,
            max_bytes: wanted.max_bytes,
            from_start: wanted.from_start,
        };
        let said = host.calls.get_console(request).await;
        let said = said.map_err(|error| ServiceError::of_host(&sandbox.id, error.into()))?;
        return Ok(text(HttpBody::from(said.into_owned().data)));
    }
    let request = FollowConsoleRequest {
        id: sandbox_id,
        max_bytes: wanted.max_bytes,
        from_start: wanted.from_start,
    };
    let followed = host.streams.follow_console(request).await;
    let followed = followed.map_err(|error| ServiceError::of_host(&sandbox.id, error.into()))?;
    let chunks = futures::stream::try_unfold(followed, |mut followed| async {
        let message = followed.message().await?;
        Ok(message.map(|message| (message.to_owned_message().data, followed)))
    });
    Ok(following(app, chunks.boxed()))
}

async fn start_command(
    app: &App,
    team: &TeamId,
    reference: &str,
    wanted: Wanted,
) -> Answered<Response> {
    if wanted.follow && wanted.max_bytes > 0 {
        return Err(HttpError::invalid(
            "'tail' is not offered where source=start is followed; \
             leave it out: all that is kept comes first",
        ));
    }
    let (sandbox, host) = app.running(team, reference).await?;
    let output = start_output(&sandbox.id, &host).await?;
    if wanted.follow {
        return Ok(following(app, output));
    }
    let printed = collect(output, wanted).await;
    let printed = printed.map_err(|error| ServiceError::of_host(&sandbox.id, error.into()))?;
    Ok(text(HttpBody::from(printed)))
}

/// The output of the start command, from the first byte that is kept to its end.
async fn start_output(
    id: &SandboxId,
    host: &HostClient,
) -> Result<BoxStream<'static, Result<Bytes, ConnectError>>, ServiceError> {
    let connect = Connect {
        pid: None,
        tag: Some(START_TAG.to_owned()),
        from: Some(Offsets::default()),
    };
    let command = Command::connect(id, host, connect).await;
    let command = command.map_err(|error| match error {
        ServiceError::NotFound(_) => ServiceError::NotFound(format!(
            "no process of sandbox {id} has the tag '{START_TAG}': its template has no start \
             command, or that ended more than half a minute ago; give source=console for the \
             sandbox's console"
        )),
        error => error,
    })?;
    let output = command.events.try_filter_map(|event| {
        let bytes = match event.event {
            Some(Event::Stdout(bytes) | Event::Stderr(bytes) | Event::Terminal(bytes)) => {
                Some(bytes)
            }
            _ => None,
        };
        futures::future::ready(Ok(bytes))
    });
    Ok(output.boxed())
}

/// Reads output until there is no more for the moment, and gives the wanted part of it.
async fn collect(
    mut output: BoxStream<'static, Result<Bytes, ConnectError>>,
    wanted: Wanted,
) -> Result<Vec<u8>, ConnectError> {
    let most = match wanted.max_bytes {
        0 => DEFAULT_LOG_BYTES,
        bytes => bytes,
    } as usize;
    let mut printed = Vec::new();
    let deadline = Instant::now() + READ_TIMEOUT;
    loop {
        let until = deadline.min(Instant::now() + QUIET_TIME);
        let Ok(Some(bytes)) = timeout_at(until, output.next()).await else {
            break;
        };
        printed.extend_from_slice(&bytes?);
        if wanted.from_start && printed.len() >= most {
            break;
        }
        if printed.len() > 2 * most {
            printed.drain(..printed.len() - most);
        }
    }
    if wanted.from_start {
        printed.truncate(most);
    } else {
        printed.drain(..printed.len().saturating_sub(most));
    }
    Ok(printed)
}

/// Output as it comes, until it ends or the server stops.
fn following(app: &App, output: BoxStream<'static, Result<Bytes, ConnectError>>) -> Response {
    let stopping = app.shutdown.clone();
    let output = output
        .take_until(async move { stopping.cancelled().await })
        .map_err(std::io::Error::other);
    text(HttpBody::from_stream(output))
}

/// Text of a guest: never anything that a browser would run.
fn text(body: HttpBody) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
