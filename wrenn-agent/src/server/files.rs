//! Files in guests. Contents of any size stream through in constant memory.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use wrenn_core::guest::{Entry, EntryKind, GuestError};
use wrenn_proto::buffa::MessageField;
use wrenn_proto::connectrpc::{ConnectError, InboundStream};
use wrenn_proto::hostagent::*;

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
    let path = input::named_path("path", &begin.path)?;
    let mode = input::mode(begin.mode)?;
    let visit = agent.visit_as(&begin.id, &begin.user)?;
    let _open = agent.metrics.stream_opened();

    let size = Arc::new(AtomicU64::new(0));
    let rest = requests.map(|request| Ok(request?.to_owned_message().data));
    let (chunks, broken) = contents(begin.data, rest);
    let chunks = {
        let size = Arc::clone(&size);
        chunks.inspect_ok(move |chunk| {
            size.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        })
    };
    let written = visit
        .ask(visit.guest.write_stream(path, None, mode, chunks))
        .await;
    if let Some(error) = broken.get() {
        return Err(error.clone());
    }
    written?;
    Ok(StreamWriteFileResponse {
        size: size.load(Ordering::Relaxed),
    })
}

/// The data of a caller's messages, and the error that ended them early, if one did: the guest
/// only learns that the rest does not come.
pub(super) fn contents(
    first: Bytes,
    rest: impl Stream<Item = Result<Bytes, ConnectError>> + Send + 'static,
) -> (
    impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    Arc<OnceLock<ConnectError>>,
) {
    let broken = Arc::new(OnceLock::new());
    let rest = {
        let broken = Arc::clone(&broken);
        rest.map_err(move |error| {
            // There is only one: the stream ends with it.
            drop(broken.set(error));
            io::Error::other("the caller's stream broke")
        })
    };
    let chunks = futures::stream::iter([Ok(first)])
        .chain(rest)
        .try_filter(|chunk: &Bytes| futures::future::ready(!chunk.is_empty()));
    (chunks, broken)
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
