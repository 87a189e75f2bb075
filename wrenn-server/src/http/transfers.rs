//! Files of any size and directories, in constant memory.
//!
//! A body that breaks must not be taken for one that ended: the call to the agent is dropped
//! with its messages open, and the old file stays.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::extract::{FromRequest as _, Multipart, Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::sync::mpsc;
use wrenn_api::error::{ErrorBody, ErrorCode};
use wrenn_api::file::FilePath;
use wrenn_api::id::SandboxId;
use wrenn_proto::hostagent::{
    ReadArchiveRequest, StatRequest, StreamReadFileRequest, StreamWriteFileRequest,
    WriteArchiveRequest,
};

use super::authentication::Caller;
use super::error::HttpError;
use super::extract::{Body, Form, Path, Query};
use super::files::{Binary, FileForm, broken_form, parse_mode, too_large, utf8};
use crate::hosts::client::{HostClient, HostError};
use crate::service::App;
use crate::service::error::ServiceError;

const X_SIZE: HeaderName = HeaderName::from_static("x-size");
/// Chunks on their way to the agent.
const IN_FLIGHT: usize = 4;
const MAX_FIELD_BYTES: usize = 8192;
/// How long the rest of an upload is read that was refused.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

type Answered<T> = Result<T, HttpError>;

/// Where an upload goes.
#[derive(Debug, Default)]
struct Target {
    path: String,
    user: String,
    mode: Option<u32>,
}

/// Write a file of any size
///
/// The body is the file, and the query says where it goes; or a form whose last field is the
/// file. The old file stays until the new one is whole. `X-Size` says how long it is.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/stream/write", tag = "files",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("path" = Option<String>, Query, description = "The path, where the body is the file", min_length = 1),
        ("user" = Option<String>, Query, description = "User of the guest"),
        ("mode" = Option<String>, Query, description = "Permission bits in octal, like 0644", pattern = "^[0-7]{1,4}$"),
    ),
    request_body(content(
        (Binary = "application/octet-stream"),
        (FileForm = "multipart/form-data"),
    )),
    responses((status = 204, headers(("X-Size" = u64))), (status = "default", body = ErrorBody))
)]
pub(crate) async fn stream_write(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    mut query: Query,
    request: Request,
) -> Answered<Response> {
    let path = query.text("path")?;
    let user = query.text("user")?.unwrap_or_default();
    let mode = query
        .text("mode")?
        .map(|mode| parse_mode(&mode))
        .transpose()?;
    query.finish()?;
    let is_form = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"multipart/form-data"));
    let (sandbox, host) = app.running(&team, &id).await?;
    let size = if is_form {
        if path.is_some() {
            return Err(HttpError::invalid(
                "'path' is given twice; a form names it in a field",
            ));
        }
        let Form(form) = Form::from_request(request, &()).await?;
        upload_form(&sandbox.id, &host, form).await?
    } else {
        let path = path.ok_or_else(|| HttpError::invalid("the query lacks 'path'"))?;
        let target = Target { path, user, mode };
        let chunks = request.into_body().into_data_stream();
        let chunks = chunks.map_err(|_| broken_body());
        upload(&sandbox.id, &host, target, chunks).await?
    };
    let mut response = StatusCode::NO_CONTENT.into_response();
    response
        .headers_mut()
        .insert(X_SIZE, HeaderValue::from(size));
    Ok(response)
}

fn broken_body() -> HttpError {
    HttpError::invalid("the body ended before it was whole; the old file is unchanged")
}

async fn upload_form(id: &SandboxId, host: &HostClient, mut form: Multipart) -> Answered<u64> {
    let mut target = Target::default();
    while let Some(mut field) = form
        .next_field()
        .await
        .map_err(|error| broken_form(&error))?
    {
        let name = field.name().unwrap_or_default().to_owned();
        if name == "file" {
            if target.path.is_empty() {
                return Err(HttpError::invalid("the form has 'path' before 'file'"));
            }
            let chunks = futures::stream::try_unfold(field, |mut field| async {
                let chunk = field.chunk().await.map_err(|_| broken_body())?;
                Ok(chunk.map(|chunk| (chunk, field)))
            });
            return upload(id, host, target, chunks).await;
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = field.chunk().await.map_err(|error| broken_form(&error))? {
            if bytes.len() + chunk.len() > MAX_FIELD_BYTES {
                return Err(too_large(&name, MAX_FIELD_BYTES));
            }
            bytes.extend_from_slice(&chunk);
        }
        match name.as_str() {
            "path" => target.path = utf8("path", bytes)?,
            "user" => target.user = utf8("user", bytes)?,
            "mode" => target.mode = Some(parse_mode(&utf8("mode", bytes)?)?),
            other => {
                return Err(HttpError::invalid(format!(
                    "the form has the unknown field '{}'",
                    wrenn_api::error::shorten(other)
                )));
            }
        }
    }
    Err(HttpError::invalid("the form lacks 'file'"))
}

/// Sends chunks as the messages of one call, made by `message` of data and whether it is the
/// last. A body that breaks has no last one, and leaves the old file on the host.
async fn send_all<M: Send + 'static>(
    chunks: impl Stream<Item = Answered<Bytes>> + Send,
    messages: mpsc::Sender<M>,
    mut message: impl FnMut(Bytes, bool) -> M,
) -> Answered<()> {
    let mut chunks = pin!(chunks);
    let mut taken = true;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        if taken && !chunk.is_empty() {
            // The agent has answered, and its answer says why. The rest is read all the same:
            // a connection that is closed with unread bytes loses the answer.
            taken = messages.send(message(chunk, false)).await.is_ok();
        }
    }
    messages.send(message(Bytes::new(), true)).await.ok();
    Ok(())
}

/// Runs a call whose messages are `chunks`, to its answer.
macro_rules! call_with_chunks {
    ($call:expr, $first:expr, $message:expr, $chunks:expr, $id:expr) => {{
        let (up, mut ready) = mpsc::channel(IN_FLIGHT);
        let messages = futures::stream::poll_fn(move |context| ready.poll_recv(context));
        let call = $call(messages);
        let mut call = pin!(call);
        // There is room for the first one.
        up.try_send($first).ok();
        let sending = send_all($chunks, up, $message);
        let mut sending = pin!(sending);
        let answer = tokio::select! {
            answer = &mut call => {
                if answer.is_err() {
                    tokio::time::timeout(DRAIN_TIMEOUT, sending).await.ok();
                }
                answer
            }
            sent = &mut sending => {
                sent?;
                call.await
            }
        };
        answer.map_err(|error| -> HttpError {
            ServiceError::of_host($id, HostError::from(error)).into()
        })?
    }};
}

async fn upload(
    id: &SandboxId,
    host: &HostClient,
    target: Target,
    chunks: impl Stream<Item = Answered<Bytes>> + Send,
) -> Answered<u64> {
    let first = StreamWriteFileRequest {
        id: id.to_string(),
        path: target.path,
        user: target.user,
        mode: target.mode,
        ..StreamWriteFileRequest::default()
    };
    let message = |data, finish_write| StreamWriteFileRequest {
        data,
        finish_write,
        ..StreamWriteFileRequest::default()
    };
    let call = |messages| host.files.stream_write_file(messages);
    let answer = call_with_chunks!(call, first, message, chunks, id);
    Ok(answer.into_owned().size)
}

/// Read a file of any size
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/stream/read", tag = "files",
    params(("id" = String, Path, description = "Id or name")),
    request_body = FilePath,
    responses(
        (status = 200, body = Binary, content_type = "application/octet-stream"),
        (status = "default", body = ErrorBody),
    )
)]
pub(crate) async fn stream_read(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<FilePath>,
) -> Answered<Response> {
    download(&app, &team, &id, body, &HeaderMap::new()).await
}

/// Download a file of any size
///
/// Takes a `Range` of bytes.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/files/content", tag = "files",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("path" = String, Query, description = "The path", min_length = 1),
        ("user" = Option<String>, Query, description = "User of the guest"),
    ),
    responses(
        (status = 200, body = Binary, content_type = "application/octet-stream"),
        (status = 206, body = Binary, content_type = "application/octet-stream"),
        (status = "default", body = ErrorBody),
    )
)]
pub(crate) async fn content(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    mut query: Query,
) -> Answered<Response> {
    let path = query.required("path")?;
    let user = query.text("user")?.unwrap_or_default();
    query.finish()?;
    download(&app, &team, &id, FilePath { path, user }, &headers).await
}

/// The part of a file that is wanted, before its length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    From { first: u64, last: Option<u64> },
    Last(u64),
}

/// Reads a `Range` of one part. What cannot be read is ignored, as HTTP wants it.
fn wanted(headers: &HeaderMap) -> Wanted {
    let range = || {
        let text = headers.get(RANGE)?.to_str().ok()?;
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        if first.is_empty() {
            return last.parse().ok().map(Wanted::Last);
        }
        let first = first.parse().ok()?;
        let last = match last {
            "" => None,
            last => Some(last.parse().ok().filter(|last| *last >= first)?),
        };
        Some(Wanted::From { first, last })
    };
    range().unwrap_or(Wanted::Whole)
}

async fn download(
    app: &App,
    team: &wrenn_api::id::TeamId,
    reference: &str,
    file: FilePath,
    headers: &HeaderMap,
) -> Answered<Response> {
    let (sandbox, host) = app.running(team, reference).await?;
    let id = &sandbox.id;
    let failed = |error| -> HttpError { ServiceError::of_host(id, HostError::from(error)).into() };
    let wanted = wanted(headers);
    let (offset, length) = match wanted {
        Wanted::Whole => (0, None),
        Wanted::From { first, last } => (first, last.map(|last| last - first + 1)),
        Wanted::Last(count) => {
            let request = StatRequest {
                id: id.to_string(),
                path: file.path.clone(),
                user: file.user.clone(),
            };
            let stat = host.calls.stat(request).await.map_err(failed)?.into_owned();
            let size = stat.entry.into_option().unwrap_or_default().size;
            (size.saturating_sub(count), None)
        }
    };
    let request = StreamReadFileRequest {
        id: id.to_string(),
        path: file.path.clone(),
        user: file.user,
        offset,
        length,
    };
    let mut chunks = host.files.stream_read_file(request).await.map_err(failed)?;
    // The first message comes before the answer: an error has a status then.
    let first = match chunks.message().await {
        Ok(first) => first.map(|message| message.to_owned_message()),
        Err(error) if error.code == wrenn_proto::connectrpc::ErrorCode::OutOfRange => {
            return Err(no_such_range());
        }
        Err(error) => return Err(failed(error)),
    };
    let total = first.as_ref().and_then(|first| first.total_size);
    if wanted != Wanted::Whole && total.is_some_and(|total| offset >= total) {
        return Err(no_such_range());
    }
    let begin = first.map(|first| first.data).unwrap_or_default();
    let rest = futures::stream::try_unfold(chunks, |mut chunks| async {
        match chunks.message().await {
            Ok(Some(message)) => Ok(Some((message.to_owned_message().data, chunks))),
            Ok(None) => Ok(None),
            Err(error) => Err(std::io::Error::other(error)),
        }
    });
    let body = futures::stream::iter([Ok(begin)])
        .chain(rest)
        .try_filter(|chunk| futures::future::ready(!chunk.is_empty()));
    let mut response = attachment(&file.path, HttpBody::from_stream(body));
    response
        .headers_mut()
        .insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(total) = total {
        let available = total.saturating_sub(offset);
        let count = length.map_or(available, |length| length.min(available));
        if wanted != Wanted::Whole && count > 0 {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {offset}-{}/{total}", offset + count - 1);
            if let Ok(range) = HeaderValue::from_str(&range) {
                response.headers_mut().insert(CONTENT_RANGE, range);
            }
        }
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, HeaderValue::from(count));
    }
    Ok(response)
}

fn no_such_range() -> HttpError {
    HttpError::new(
        ErrorCode::RangeNotSatisfiable,
        "no byte of the file is in the range",
    )
}

/// A body of a guest: always something to save, never something that a browser runs.
pub(super) fn attachment(path: &str, body: HttpBody) -> Response {
    let name = path.rsplit('/').next().unwrap_or_default();
    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename*=UTF-8''{encoded}")) {
        headers.insert(CONTENT_DISPOSITION, value);
    }
    response
}

/// Download a directory as a tar archive
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/files/archive", tag = "files",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("path" = String, Query, description = "The directory", min_length = 1),
        ("user" = Option<String>, Query, description = "User of the guest"),
    ),
    responses(
        (status = 200, body = Binary, content_type = "application/x-tar"),
        (status = "default", body = ErrorBody),
    )
)]
pub(crate) async fn read_archive(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    mut query: Query,
) -> Answered<Response> {
    let path = query.required("path")?;
    let user = query.text("user")?.unwrap_or_default();
    query.finish()?;
    let (sandbox, host) = app.running(&team, &id).await?;
    let failed =
        |error| -> HttpError { ServiceError::of_host(&sandbox.id, HostError::from(error)).into() };
    let request = ReadArchiveRequest {
        id: sandbox.id.to_string(),
        path: path.clone(),
        user,
    };
    let mut chunks = host.files.read_archive(request).await.map_err(failed)?;
    let first = chunks.message().await.map_err(failed)?;
    let first = first.map(|message| message.to_owned_message().data);
    let rest = futures::stream::try_unfold(chunks, |mut chunks| async {
        match chunks.message().await {
            Ok(Some(message)) => Ok(Some((message.to_owned_message().data, chunks))),
            Ok(None) => Ok(None),
            Err(error) => Err(std::io::Error::other(error)),
        }
    });
    let body = futures::stream::iter(first.map(Ok)).chain(rest);
    let name = format!("{}.tar", path.trim_end_matches('/'));
    let mut response = attachment(&name, HttpBody::from_stream(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// Unpack a tar archive into a directory
///
/// It is made if need be. Entries that lead out of it are refused.
#[utoipa::path(
    put, path = "/v1/sandboxes/{id}/files/archive", tag = "files",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("path" = String, Query, description = "The directory", min_length = 1),
        ("user" = Option<String>, Query, description = "User of the guest"),
    ),
    request_body(content = Binary, content_type = "application/x-tar"),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn write_archive(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    mut query: Query,
    request: Request,
) -> Answered<StatusCode> {
    let path = query.required("path")?;
    let user = query.text("user")?.unwrap_or_default();
    query.finish()?;
    let (sandbox, host) = app.running(&team, &id).await?;
    let chunks = request.into_body().into_data_stream();
    let chunks = chunks.map_err(|_| broken_body());
    let first = WriteArchiveRequest {
        id: sandbox.id.to_string(),
        path,
        user,
        ..WriteArchiveRequest::default()
    };
    let message = |data, finish_write| WriteArchiveRequest {
        data,
        finish_write,
        ..WriteArchiveRequest::default()
    };
    let call = |messages| host.files.write_archive(messages);
    let _unpacked = call_with_chunks!(call, first, message, chunks, &sandbox.id);
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(range: &'static str) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_static(range));
        wanted(&headers)
    }

    #[test]
    fn ranges_of_one_part_are_read() {
        assert_eq!(wanted(&HeaderMap::new()), Wanted::Whole);
        assert_eq!(
            of("bytes=5-9"),
            Wanted::From {
                first: 5,
                last: Some(9)
            }
        );
        assert_eq!(
            of("bytes=5-"),
            Wanted::From {
                first: 5,
                last: None
            }
        );
        assert_eq!(of("bytes=-3"), Wanted::Last(3));
        for ignored in [
            "bytes=9-5",
            "lines=1-2",
            "bytes=1-2,4-5",
            "bytes=",
            "bytes=x-",
        ] {
            assert_eq!(of(ignored), Wanted::Whole, "{ignored}");
        }
    }

    #[test]
    fn file_names_are_escaped_in_headers() {
        let response = attachment("/tmp/a \"b\"\r\n.html", HttpBody::empty());
        assert_eq!(
            response.headers()[CONTENT_DISPOSITION],
            "attachment; filename*=UTF-8''a%20%22b%22%0D%0A.html"
        );
    }
}
