//! Files of a sandbox: small ones whole, and what is done with paths.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::multipart::MultipartError;
use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use wrenn_api::error::{ErrorBody, ErrorCode};
use wrenn_api::file::{
    FileEntry, FileList, FilePath, ListFiles, MAX_FILE_BYTES, MoveFile, WatchMessage,
};
use wrenn_api::id::SandboxId;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::__buffa::oneof::watch_dir_response::Event;
use wrenn_proto::hostagent::{
    ListDirRequest, MakeDirRequest, MovePathRequest, ReadFileRequest, RemovePathRequest,
    StatRequest, WatchDirRequest, WriteFileRequest,
};

use super::authentication::Caller;
use super::error::HttpError;
use super::extract::{Body, Form, Path, Query, Upgrade};
use super::transfers::attachment;
use crate::hosts::client::HostError;
use crate::hosts::convert;
use crate::service::App;
use crate::service::error::ServiceError;

const MAX_DEPTH: u32 = 16;
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// What a field of a form that is no file may hold.
const MAX_FIELD_BYTES: usize = 8192;

type Answered<T> = Result<T, HttpError>;

fn of_host(id: &SandboxId) -> impl FnOnce(ConnectError) -> HttpError {
    let id = id.clone();
    move |error| ServiceError::of_host(&id, HostError::from(error)).into()
}

/// Permission bits in octal digits.
pub(super) fn parse_mode(text: &str) -> Answered<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| {
            HttpError::invalid(format!(
                "'mode' is '{}'; give permission bits in octal, like 0644",
                wrenn_api::error::shorten(text)
            ))
        })
}

/// Bytes as they are, as OpenAPI shows them.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "a description of bodies, which are streams")]
pub(crate) struct Binary(Vec<u8>);

/// A form with a file, as OpenAPI shows it.
#[derive(utoipa::ToSchema)]
#[allow(
    dead_code,
    reason = "a description of a form, which is read field by field"
)]
pub(crate) struct FileForm {
    /// The path; one that is not absolute begins in the user's home.
    #[schema(min_length = 1)]
    path: String,
    /// User of the guest; the template's default one unless set.
    user: Option<String>,
    /// Permission bits in octal, like 0644.
    #[schema(pattern = "^[0-7]{1,4}$")]
    mode: Option<String>,
    /// The file.
    #[schema(value_type = String, format = Binary)]
    file: String,
}

/// Write a file
///
/// Up to 16 MiB; `stream/write` takes any size. The old file stays until the new one is whole.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/write", tag = "files",
    params(("id" = String, Path, description = "Id or name")),
    request_body(content = FileForm, content_type = "multipart/form-data"),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn write_file(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Form(mut form): Form,
) -> Answered<StatusCode> {
    let (mut path, mut user, mut mode, mut data) = (None, None, None, None);
    while let Some(mut field) = form
        .next_field()
        .await
        .map_err(|error| broken_form(&error))?
    {
        let name = field.name().unwrap_or_default().to_owned();
        let limit = if name == "file" {
            MAX_FILE_BYTES
        } else {
            MAX_FIELD_BYTES
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = field.chunk().await.map_err(|error| broken_form(&error))? {
            if bytes.len() + chunk.len() > limit {
                return Err(too_large(&name, limit));
            }
            bytes.extend_from_slice(&chunk);
        }
        match name.as_str() {
            "path" => path = Some(utf8("path", bytes)?),
            "user" => user = Some(utf8("user", bytes)?),
            "mode" => mode = Some(parse_mode(&utf8("mode", bytes)?)?),
            "file" => data = Some(Bytes::from(bytes)),
            other => {
                return Err(HttpError::invalid(format!(
                    "the form has the unknown field '{}'",
                    wrenn_api::error::shorten(other)
                )));
            }
        }
    }
    let path = path.ok_or_else(|| HttpError::invalid("the form lacks 'path'"))?;
    let data = data.ok_or_else(|| HttpError::invalid("the form lacks 'file'"))?;
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = WriteFileRequest {
        id: sandbox.id.to_string(),
        path,
        user: user.unwrap_or_default(),
        data,
        mode,
    };
    let written = host.calls.write_file(request).await;
    written.map_err(of_host(&sandbox.id))?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn utf8(field: &str, bytes: Vec<u8>) -> Answered<String> {
    String::from_utf8(bytes).map_err(|_| HttpError::invalid(format!("'{field}' is not UTF-8")))
}

pub(super) fn too_large(field: &str, limit: usize) -> HttpError {
    HttpError::new(
        ErrorCode::TooLarge,
        format!(
            "'{}' has more than {limit} bytes; stream/write takes files of any size",
            wrenn_api::error::shorten(field)
        ),
    )
}

pub(super) fn broken_form(error: &MultipartError) -> HttpError {
    HttpError::invalid(format!("the form cannot be read: {}", error.body_text()))
}

/// Read a file
///
/// Up to 16 MiB; `stream/read` gives any size.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/read", tag = "files",
    params(("id" = String, Path, description = "Id or name")),
    request_body = FilePath,
    responses(
        (status = 200, body = Binary, content_type = "application/octet-stream"),
        (status = "default", body = ErrorBody),
    )
)]
pub(crate) async fn read_file(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<FilePath>,
) -> Answered<Response> {
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = ReadFileRequest {
        id: sandbox.id.to_string(),
        path: body.path.clone(),
        user: body.user,
    };
    let read = host.calls.read_file(request).await;
    let read = read.map_err(of_host(&sandbox.id))?.into_owned();
    Ok(attachment(&body.path, axum::body::Body::from(read.data)))
}

/// List a directory
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/list", tag = "files",
    params(("id" = String, Path, description = "Id or name")),
    request_body = ListFiles,
    responses((status = 200, body = FileList), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list_files(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<ListFiles>,
) -> Answered<Json<FileList>> {
    if !(1..=MAX_DEPTH).contains(&body.depth) {
        return Err(HttpError::invalid(format!(
            "'depth' is {}; give 1 to {MAX_DEPTH}",
            body.depth
        )));
    }
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = ListDirRequest {
        id: sandbox.id.to_string(),
        path: body.path,
        user: body.user,
        depth: body.depth,
    };
    let listed = host.calls.list_dir(request).await;
    let listed = listed.map_err(of_host(&sandbox.id))?.into_owned();
    Ok(Json(FileList {
        items: listed.entries.into_iter().map(convert::file).collect(),
    }))
}

/// Describe a file or directory
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/stat", tag = "files",
    params(("id" = String, Path, description = "Id or name")),
    request_body = FilePath,
    responses((status = 200, body = FileEntry), (status = "default", body = ErrorBody))
)]
pub(crate) async fn stat_file(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<FilePath>,
) -> Answered<Json<FileEntry>> {
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = StatRequest {
        id: sandbox.id.to_string(),
        path: body.path,
        user: body.user,
    };
    let stat = host.calls.stat(request).await;
    let stat = stat.map_err(of_host(&sandbox.id))?.into_owned();
    Ok(Json(convert::file(
        stat.entry.into_option().unwrap_or_default(),
    )))
}

/// Make a directory
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/mkdir", tag = "files",
    params(("id" = String, Path, description = "Id or name")),
    request_body = FilePath,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn make_dir(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<FilePath>,
) -> Answered<StatusCode> {
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = MakeDirRequest {
        id: sandbox.id.to_string(),
        path: body.path,
        user: body.user,
    };
    let made = host.calls.make_dir(request).await;
    made.map_err(of_host(&sandbox.id))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Rename a file or directory
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/move", tag = "files",
    params(("id" = String, Path, description = "Id or name")),
    request_body = MoveFile,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn move_file(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<MoveFile>,
) -> Answered<StatusCode> {
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = MovePathRequest {
        id: sandbox.id.to_string(),
        from: body.from,
        to: body.to,
        user: body.user,
    };
    let moved = host.calls.move_path(request).await;
    moved.map_err(of_host(&sandbox.id))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove a file or directory
///
/// A directory goes with all that is in it. What is not there is no error.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/remove", tag = "files",
    params(("id" = String, Path, description = "Id or name")),
    request_body = FilePath,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn remove_file(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<FilePath>,
) -> Answered<StatusCode> {
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = RemovePathRequest {
        id: sandbox.id.to_string(),
        path: body.path,
        user: body.user,
    };
    let removed = host.calls.remove_path(request).await;
    removed.map_err(of_host(&sandbox.id))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Watch a directory (WebSocket)
///
/// The server sends `WatchMessage` in text frames, `watching` first.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/files/watch", tag = "files",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("path" = String, Query, description = "The directory", min_length = 1),
        ("user" = Option<String>, Query, description = "User of the guest"),
        ("recursive" = Option<bool>, Query, description = "And all below it"),
    ),
    responses((status = 101, description = "WatchMessage in frames"), (status = "default", body = ErrorBody))
)]
pub(crate) async fn watch_files(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    mut query: Query,
    Upgrade(upgrade): Upgrade,
) -> Answered<Response> {
    let path = query.required("path")?;
    let user = query.text("user")?.unwrap_or_default();
    let recursive = query.flag("recursive")?;
    query.finish()?;
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = WatchDirRequest {
        id: sandbox.id.to_string(),
        path,
        user,
        recursive,
    };
    let watched = host.streams.watch_dir(request).await;
    let mut watched = watched.map_err(of_host(&sandbox.id))?;
    // The first message says that it watches, or why not: before the upgrade, so that the
    // client sees a status.
    let first = watched.message().await.map_err(of_host(&sandbox.id))?;
    let mut first = first.map(|message| message.to_owned_message());
    let tasks = app.tasks.clone();
    Ok(upgrade.on_upgrade(move |mut socket| async move {
        let serving = async move {
            let mut pings = tokio::time::interval(PING_INTERVAL);
            pings.reset();
            loop {
                let message = match first.take() {
                    Some(message) => Ok(Some(message)),
                    None => tokio::select! {
                        message = watched.message() => {
                            message.map(|message| message.map(|message| message.to_owned_message()))
                        }
                        received = socket.recv() => match received {
                            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                            Some(Ok(_)) => continue,
                        },
                        _ = pings.tick() => {
                            if socket.send(Message::Ping(Bytes::new())).await.is_err() {
                                return;
                            }
                            continue;
                        }
                        () = app.shutdown.cancelled() => return,
                    },
                };
                let message = match message {
                    Ok(Some(message)) => match message.event {
                        Some(Event::Watching(_)) => WatchMessage::Watching,
                        Some(Event::Change(change)) => WatchMessage::Change {
                            name: change.name,
                            kind: convert::change(change.kind.as_known().unwrap_or_default()),
                        },
                        Some(Event::KeepAlive(_)) | None => continue,
                    },
                    Ok(None) => return,
                    Err(error) => {
                        let error: HttpError = of_host(&sandbox.id)(error);
                        let message = WatchMessage::Error {
                            code: error.code,
                            message: error.message,
                        };
                        send(&mut socket, &message).await.ok();
                        return;
                    }
                };
                if send(&mut socket, &message).await.is_err() {
                    return;
                }
            }
        };
        if let Err(error) = tasks.spawn(serving).await {
            tracing::error!(%error, "failed to serve a WebSocket");
        }
    }))
}

async fn send(socket: &mut WebSocket, message: &WatchMessage) -> Result<(), axum::Error> {
    let text = serde_json::to_string(message).map_err(axum::Error::new)?;
    socket.send(Message::Text(text.into())).await
}
