//! Files in guests. Contents of any size stream through in constant memory.

use std::pin::pin;
use std::sync::Arc;

use bytes::BytesMut;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use wrenn_core::guest::{Entry, EntryKind, GuestError};
use wrenn_proto::buffa::MessageField;
use wrenn_proto::connectrpc::{ConnectError, InboundStream};
use wrenn_proto::hostagent::*;
use wrenn_proto::upload::Upload;

use super::exec::first;
use super::input::MAX_WHOLE;
use super::{State as Agent, input};

pub(super) async fn write(
    agent: &Arc<Agent>,
    request: WriteFileRequest,
) -> Result<WriteFileResponse, ConnectError> {
    let path = input::named_path("path", &request.path)?;
    if request.data.len() > MAX_WHOLE {
        return Err(input::too_large("WriteFile", "StreamWriteFile"));
    }
    let size = request.data.len() as u64;
    let mode = input::mode(request.mode)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    match mode {
        Some(mode) => {
            let written = visit.guest.write_file_with_mode(path, mode, request.data);
            visit.ask(written).await?;
        }
        None => {
            visit
                .ask(visit.guest.write_file(path, request.data))
                .await?
        }
    }
    Ok(WriteFileResponse { size })
}

pub(super) async fn read(
    agent: &Arc<Agent>,
    request: ReadFileRequest,
) -> Result<ReadFileResponse, ConnectError> {
    let path = input::named_path("path", &request.path)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    let reading = async {
        let mut chunks = pin!(visit.guest.read_stream(path).await?);
        let mut data = BytesMut::new();
        while let Some(chunk) = chunks.try_next().await? {
            data.extend_from_slice(&chunk);
            if data.len() > MAX_WHOLE {
                return Ok::<_, GuestError>(None);
            }
        }
        Ok(Some(data.freeze()))
    };
    match visit.ask(reading).await? {
        Some(data) => Ok(ReadFileResponse { data }),
        None => Err(input::too_large("ReadFile", "StreamReadFile")),
    }
}

pub(super) async fn stream_write(
    agent: &Arc<Agent>,
    mut requests: InboundStream<StreamWriteFileRequest>,
) -> Result<StreamWriteFileResponse, ConnectError> {
    let begin = first(&mut requests, agent).await?;
    let path = input::named_path("path", &begin.path)?.to_owned();
    let mode = input::mode(begin.mode)?;
    let visit = agent.visit_as(&begin.id, &begin.user)?;
    let _open = agent.metrics.stream_opened();

    let rest = requests.map(|request| Ok(request?.to_owned_message()));
    let (upload, data) = Upload::receive(begin, rest);
    let written = visit
        .ask(visit.guest.write_stream(&path, None, mode, data))
        .await;
    upload.check()?;
    written?;
    Ok(StreamWriteFileResponse {
        size: upload.size(),
    })
}

pub(super) async fn stream_read(
    agent: &Arc<Agent>,
    request: StreamReadFileRequest,
) -> Result<
    impl Stream<Item = Result<StreamReadFileResponse, ConnectError>> + Send + use<>,
    ConnectError,
> {
    let path = input::named_path("path", &request.path)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    let open = agent.metrics.stream_opened();
    let reading = visit.guest.read_part(path, request.offset, request.length);
    let contents = visit.ask(reading).await?;
    let first = StreamReadFileResponse {
        total_size: contents.total_size,
        ..StreamReadFileResponse::default()
    };
    let begin = Some((visit, open, contents.chunks));
    let data = futures::stream::unfold(begin, |reading| async {
        let (visit, open, mut chunks) = reading?;
        match visit.ask(chunks.try_next()).await {
            Ok(Some(data)) => Some((
                Ok(StreamReadFileResponse {
                    data,
                    ..StreamReadFileResponse::default()
                }),
                Some((visit, open, chunks)),
            )),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(futures::stream::iter([Ok(first)]).chain(data))
}

pub(super) async fn stat(
    agent: &Arc<Agent>,
    request: StatRequest,
) -> Result<StatResponse, ConnectError> {
    let path = input::path(&request.path)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    let entry = visit.ask(visit.guest.stat(path)).await?;
    Ok(StatResponse {
        entry: MessageField::some(describe(entry)),
    })
}

pub(super) async fn list(
    agent: &Arc<Agent>,
    request: ListDirRequest,
) -> Result<ListDirResponse, ConnectError> {
    let path = input::path(&request.path)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    let depth = request.depth.max(1);
    let entries = visit.ask(visit.guest.list_dir(path, depth)).await?;
    Ok(ListDirResponse {
        entries: entries.into_iter().map(describe).collect(),
    })
}

pub(super) async fn make_dir(
    agent: &Arc<Agent>,
    request: MakeDirRequest,
) -> Result<MakeDirResponse, ConnectError> {
    let path = input::named_path("path", &request.path)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    visit.ask(visit.guest.make_dir(path)).await?;
    Ok(MakeDirResponse::default())
}

pub(super) async fn rename(
    agent: &Arc<Agent>,
    request: MovePathRequest,
) -> Result<MovePathResponse, ConnectError> {
    let from = input::named_path("from", &request.from)?;
    let to = input::named_path("to", &request.to)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    visit.ask(visit.guest.rename(from, to)).await?;
    Ok(MovePathResponse::default())
}

pub(super) async fn remove(
    agent: &Arc<Agent>,
    request: RemovePathRequest,
) -> Result<RemovePathResponse, ConnectError> {
    let path = input::named_path("path", &request.path)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    visit.ask(visit.guest.remove(path)).await?;
    Ok(RemovePathResponse::default())
}

fn describe(entry: Entry) -> FileEntry {
    let kind = match entry.kind {
        EntryKind::File => FileKind::FILE_KIND_FILE,
        EntryKind::Directory => FileKind::FILE_KIND_DIRECTORY,
        EntryKind::Symlink => FileKind::FILE_KIND_SYMLINK,
        EntryKind::Special => FileKind::FILE_KIND_SPECIAL,
    };
    FileEntry {
        name: entry.name,
        path: entry.path,
        kind: kind.into(),
        size: entry.size,
        mode: entry.mode,
        owner: entry.owner,
        group: entry.group,
        symlink_target: entry.symlink_target.unwrap_or_default(),
        modified_at: entry.modified.map_or_else(String::new, |time| {
            humantime::format_rfc3339(time).to_string()
        }),
    }
}
