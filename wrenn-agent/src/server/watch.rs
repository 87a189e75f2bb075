//! Following changes under a directory of a guest.

use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use tokio::time::timeout;
use wrenn_core::guest::{Change, ChangeKind, GuestWatch};
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::__buffa::oneof::watch_dir_response::Event;
use wrenn_proto::hostagent::watch_dir_response::{Change as ChangeMessage, Kind};
use wrenn_proto::hostagent::{WatchDirRequest, WatchDirResponse};

use super::guest::Visit;
use super::{KEEP_ALIVE, State as Agent, input};
use crate::errors::{answer, stopping};
use crate::metrics::OpenStream;

struct Watching {
    agent: Arc<Agent>,
    visit: Visit,
    watch: GuestWatch,
    _open: OpenStream,
}

/// `watching`, then changes until an error: nothing else ends a watch on this side.
pub(super) async fn watch(
    agent: &Arc<Agent>,
    request: WatchDirRequest,
) -> Result<impl Stream<Item = Result<WatchDirResponse, ConnectError>> + Send + use<>, ConnectError>
{
    let path = input::path(&request.path)?;
    let visit = agent.visit_as(&request.id, &request.user)?;
    let watch = visit
        .ask(visit.guest.watch_dir(path, request.recursive))
        .await?;
    let watching = Watching {
        _open: agent.metrics.stream_opened(),
        agent: Arc::clone(agent),
        visit,
        watch,
    };
    let begin = event(Event::Watching(Box::default()));
    let changes = futures::stream::unfold(Some(watching), |watching| async {
        let mut watching = watching?;
        match watching.next().await {
            Ok(event) => Some((Ok(event), Some(watching))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(futures::stream::iter([Ok(begin)]).chain(changes))
}

impl Watching {
    async fn next(&mut self) -> Result<WatchDirResponse, ConnectError> {
        tokio::select! {
            biased;
            next = timeout(KEEP_ALIVE, self.watch.next()) => match next {
                Ok(Ok(change)) => Ok(event(Event::Change(Box::new(describe(change))))),
                Ok(Err(error)) => Err(answer(&error)),
                Err(_) => Ok(event(Event::KeepAlive(Box::default()))),
            },
            gone = self.visit.sandbox.not_running() => Err(answer(&gone)),
            () = self.agent.shutdown.cancelled() => Err(stopping()),
        }
    }
}

fn event(event: Event) -> WatchDirResponse {
    WatchDirResponse { event: Some(event) }
}

fn describe(change: Change) -> ChangeMessage {
    let kind = match change.kind {
        ChangeKind::Created => Kind::KIND_CREATED,
        ChangeKind::Written => Kind::KIND_WRITTEN,
        ChangeKind::Removed => Kind::KIND_REMOVED,
        ChangeKind::Renamed => Kind::KIND_RENAMED,
        ChangeKind::ModeChanged => Kind::KIND_MODE_CHANGED,
        ChangeKind::Unknown => Kind::KIND_UNSPECIFIED,
    };
    ChangeMessage {
        name: change.name,
        kind: kind.into(),
    }
}
