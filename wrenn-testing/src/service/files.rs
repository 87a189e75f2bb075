//! Files in guests.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use wrenn_proto::buffa_types::google::protobuf::Timestamp;
use wrenn_proto::connectrpc::{ConnectError, InboundStream};
use wrenn_proto::filesystem::{EntryInfo, FileType};
use wrenn_proto::hostagent::*;
use wrenn_proto::upload::Upload;

use super::input::{self, MAX_WHOLE};
use crate::errors::too_large;
use crate::guest::Client;
use crate::host::{Host, Visit};

type Answer<T> = Result<T, ConnectError>;

/// Enters a guest for work on files by `user`, or the default one where it is empty.
fn visit_as(host: &Arc<Host>, id: &str, user: &str) -> Answer<(Visit, Client)> {
    let user = input::user(user)?;
    let visit = input::visit(host, id)?;
    let client = visit.guest.client().as_user(user);
    Ok((visit, client))
}

fn larger(method: &str, instead: &str) -> ConnectError {
    too_large(format!(
        "{method} takes up to {} MiB; use {instead} for more",
        MAX_WHOLE >> 20
    ))
}

pub(super) async fn write(
    host: &Arc<Host>,
    request: WriteFileRequest,
) -> Answer<WriteFileResponse> {
    let path = input::named_path("path", &request.path)?;
    let mode = input::mode(request.mode)?;
    if request.data.len() > MAX_WHOLE {
        return Err(larger("WriteFile", "StreamWriteFile"));
    }
    let size = request.data.len() as u64;
    let (visit, client) = visit_as(host, &request.id, &request.user)?;
    let chunks = futures::stream::iter([Ok(request.data)]);
    visit.ask(client.write_file(path, mode, chunks)).await?;
    Ok(WriteFileResponse { size })
}

pub(super) async fn read(host: &Arc<Host>, request: ReadFileRequest) -> Answer<ReadFileResponse> {
    let path = input::named_path("path", &request.path)?;
    let (visit, client) = visit_as(host, &request.id, &request.user)?;
    let reading = async {
        let mut chunks = client.read_file(path, 0, None).await?.chunks;
        let mut data = BytesMut::new();
        while let Some(chunk) = chunks.try_next().await? {
            data.extend_from_slice(&chunk);
            if data.len() > MAX_WHOLE {
                return Err(larger("ReadFile", "StreamReadFile"));
            }
        }
        Ok(data.freeze())
    };
    Ok(ReadFileResponse {
        data: visit.ask(reading).await?,
    })
}

pub(super) async fn stream_write(
    host: &Arc<Host>,
    begin: StreamWriteFileRequest,
    rest: InboundStream<StreamWriteFileRequest>,
) -> Answer<StreamWriteFileResponse> {
    let path = input::named_path("path", &begin.path)?.to_owned();
    let mode = input::mode(begin.mode)?;
    let (visit, client) = visit_as(host, &begin.id, &begin.user)?;
    let rest = rest.map(|request| Ok(request?.to_owned_message()));
    let (upload, data) = Upload::receive(begin, rest);
    let written = visit.ask(client.write_file(&path, mode, data)).await;
    upload.check()?;
    written?;
    Ok(StreamWriteFileResponse {
        size: upload.size(),
    })
}

pub(super) async fn stream_read(
    host: &Arc<Host>,
    request: StreamReadFileRequest,
) -> Answer<impl Stream<Item = Answer<StreamReadFileResponse>> + Send + use<>> {
    let path = input::named_path("path", &request.path)?.to_owned();
    let (visit, client) = visit_as(host, &request.id, &request.user)?;
    let reading = client.read_file(&path, request.offset, request.length);
    let file = visit.ask(reading).await?;
    let head = StreamReadFileResponse {
        total_size: file.total_size,
        ..StreamReadFileResponse::default()
    };
    let chunks = until_it_ends(visit, file.chunks).map_ok(|data| StreamReadFileResponse {
        data,
        ..StreamReadFileResponse::default()
    });
    Ok(futures::stream::iter([Ok(head)]).chain(chunks))
}

/// The chunks, and an error when the sandbox runs no longer.
fn until_it_ends(
    visit: Visit,
    chunks: BoxStream<'static, Answer<Bytes>>,
) -> impl Stream<Item = Answer<Bytes>> + Send + use<> {
    futures::stream::unfold(Some((visit, chunks)), |reading| async {
        let (visit, mut chunks) = reading?;
        match visit.ask(chunks.try_next()).await {
            Ok(Some(data)) => Some((Ok(data), Some((visit, chunks)))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

pub(super) async fn read_archive(
    host: &Arc<Host>,
    request: ReadArchiveRequest,
) -> Answer<impl Stream<Item = Answer<ReadArchiveResponse>> + Send + use<>> {
    let path = input::path(&request.path)?.to_owned();
    let (visit, client) = visit_as(host, &request.id, &request.user)?;
    let chunks = visit.ask(client.read_archive(&path)).await?;
    Ok(until_it_ends(visit, chunks).map_ok(|data| ReadArchiveResponse { data }))
}

pub(super) async fn write_archive(
    host: &Arc<Host>,
    begin: WriteArchiveRequest,
    rest: InboundStream<WriteArchiveRequest>,
) -> Answer<WriteArchiveResponse> {
    let path = input::path(&begin.path)?.to_owned();
    let (visit, client) = visit_as(host, &begin.id, &begin.user)?;
    let rest = rest.map(|request| Ok(request?.to_owned_message()));
    let (upload, data) = Upload::receive(begin, rest);
    let written = visit.ask(client.write_archive(&path, data)).await;
    upload.check()?;
    Ok(WriteArchiveResponse { entries: written? })
}

pub(super) async fn stat(host: &Arc<Host>, request: StatRequest) -> Answer<StatResponse> {
    let path = input::path(&request.path)?;
    let (visit, client) = visit_as(host, &request.id, &request.user)?;
    let entry = visit.ask(client.stat(path)).await?;
    Ok(StatResponse {
        entry: entry.map(describe).into(),
    })
}

pub(super) async fn list(host: &Arc<Host>, request: ListDirRequest) -> Answer<ListDirResponse> {
    let path = input::path(&request.path)?;
    let (visit, client) = visit_as(host, &request.id, &request.user)?;
    let depth = request.depth.max(1);
    let entries = visit.ask(client.list_dir(path, depth)).await?;
    Ok(ListDirResponse {
        entries: entries.into_iter().map(describe).collect(),
    })
}

pub(super) async fn make_dir(host: &Arc<Host>, request: MakeDirRequest) -> Answer<MakeDirResponse> {
    let path = input::named_path("path", &request.path)?;
    let (visit, client) = visit_as(host, &request.id, &request.user)?;
    visit.ask(client.make_dir(path)).await?;
    Ok(MakeDirResponse::default())
}

pub(super) async fn rename(host: &Arc<Host>, request: MovePathRequest) -> Answer<MovePathResponse> {
    let from = input::named_path("from", &request.from)?;
    let to = input::named_path("to", &request.to)?;
    let (visit, client) = visit_as(host, &request.id, &request.user)?;
    visit.ask(client.rename(from, to)).await?;
    Ok(MovePathResponse::default())
}

pub(super) async fn remove(
    host: &Arc<Host>,
    request: RemovePathRequest,
) -> Answer<RemovePathResponse> {
    let path = input::named_path("path", &request.path)?;
    let (visit, client) = visit_as(host, &request.id, &request.user)?;
    visit.ask(client.remove(path)).await?;
    Ok(RemovePathResponse::default())
}

fn describe(entry: EntryInfo) -> FileEntry {
    let kind = match entry.r#type.as_known() {
        Some(FileType::FILE_TYPE_FILE) => FileKind::FILE_KIND_FILE,
        Some(FileType::FILE_TYPE_DIRECTORY) => FileKind::FILE_KIND_DIRECTORY,
        Some(FileType::FILE_TYPE_SYMLINK) => FileKind::FILE_KIND_SYMLINK,
        _ => FileKind::FILE_KIND_SPECIAL,
    };
    let modified = entry.modified_time.into_option().as_ref().and_then(rfc3339);
    FileEntry {
        name: entry.name,
        path: entry.path,
        kind: kind.into(),
        size: u64::try_from(entry.size).unwrap_or(0),
        mode: entry.mode,
        owner: entry.owner,
        group: entry.group,
        symlink_target: entry.symlink_target.unwrap_or_default(),
        modified_at: modified.unwrap_or_default(),
    }
}

/// `None` for times before 1970, which no guest of a test has.
fn rfc3339(time: &Timestamp) -> Option<String> {
    let since = std::time::Duration::new(
        u64::try_from(time.seconds).ok()?,
        u32::try_from(time.nanos).ok()?,
    );
    let time = std::time::UNIX_EPOCH.checked_add(since)?;
    Some(humantime::format_rfc3339(time).to_string())
}
