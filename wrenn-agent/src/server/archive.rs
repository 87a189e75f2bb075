//! Directories of guests as tar archives, which stream through in constant memory. The guest
//! makes and unpacks them: nothing of a guest's is unpacked on its host.

use std::sync::Arc;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use wrenn_proto::connectrpc::{ConnectError, InboundStream};
use wrenn_proto::hostagent::*;
use wrenn_proto::upload::Upload;

use super::exec::first;
use super::{State as Agent, input};

pub(super) async fn read(
    agent: &Arc<Agent>,
    request: ReadArchiveRequest,
) -> Result<
    impl Stream<Item = Result<ReadArchiveResponse, ConnectError>> + Send + use<>,
    ConnectError,
> {
    let path = input::named_path("path", &request.path)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    let open = agent.metrics.stream_opened();
    let chunks = visit.ask(visit.guest.read_archive(path)).await?.boxed();
    let begin = Some((visit, open, chunks));
    Ok(futures::stream::unfold(begin, |reading| async {
        let (visit, open, mut chunks) = reading?;
        match visit.ask(chunks.try_next()).await {
            Ok(Some(data)) => Some((
                Ok(ReadArchiveResponse { data }),
                Some((visit, open, chunks)),
            )),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

pub(super) async fn write(
    agent: &Arc<Agent>,
    mut requests: InboundStream<WriteArchiveRequest>,
) -> Result<WriteArchiveResponse, ConnectError> {
    let begin = first(&mut requests, agent).await?;
    let path = input::named_path("path", &begin.path)?.to_owned();
    let visit = agent.visit_as(&begin.id, &begin.user)?;
    let _open = agent.metrics.stream_opened();
    let rest = requests.map(|request| Ok(request?.to_owned_message()));
    let (upload, data) = Upload::receive(begin, rest);
    let unpacked = visit.ask(visit.guest.write_archive(&path, data)).await;
    upload.check()?;
    Ok(WriteArchiveResponse { entries: unpacked? })
}
