//! Following changes under a directory of a guest.

use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use tokio::time::timeout;
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::filesystem::{EventType, FilesystemEvent, watch_dir_response};
use wrenn_proto::hostagent::__buffa::oneof::watch_dir_response::Event;
use wrenn_proto::hostagent::watch_dir_response::{Change, Kind};
use wrenn_proto::hostagent::{Reason, WatchDirRequest, WatchDirResponse};

use super::input;
use crate::errors::{refuse, stopping};
use crate::host::{Host, Visit};

struct Watching {
    host: Arc<Host>,
    visit: Visit,
    events: BoxStream<'static, Result<watch_dir_response::Event, ConnectError>>,
}

/// `watching`, then changes until an error.
pub(super) async fn watch(
    host: &Arc<Host>,
    request: WatchDirRequest,
) -> Result<impl Stream<Item = Result<WatchDirResponse, ConnectError>> + Send + use<>, ConnectError>
{
    let path = input::path(&request.path)?;
    let user = input::user(&request.user)?;
    let visit = input::visit(host, &request.id)?;
    let client = visit.guest.client().as_user(user);
    let begun = async {
        let mut events = client.watch(path, request.recursive).await?;
        loop {
            match events.next().await {
                Some(Ok(watch_dir_response::Event::Start(_))) => return Ok(events),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(ended()),
            }
        }
    };
    let events = visit.ask(begun).await?;
    let watching = Watching {
        host: Arc::clone(host),
        visit,
        events,
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
        loop {
            let interval = self.host.config.keep_alive;
            tokio::select! {
                biased;
                next = timeout(interval, self.events.next()) => match next {
                    Ok(Some(Ok(watch_dir_response::Event::Filesystem(change)))) => {
                        return Ok(event(Event::Change(Box::new(describe(*change)))));
                    }
                    Ok(Some(Ok(_))) => {}
                    Ok(Some(Err(error))) => return Err(error),
                    Ok(None) => return Err(ended()),
                    Err(_) => return Ok(event(Event::KeepAlive(Box::default()))),
                },
                gone = self.visit.sandbox.not_running() => return Err(gone),
                () = self.host.shutdown.cancelled() => return Err(stopping()),
            }
        }
    }
}

fn ended() -> ConnectError {
    refuse(
        ErrorCode::Unavailable,
        Reason::REASON_GUEST_UNAVAILABLE,
        "the guest ended the watch; try again",
    )
}

fn event(event: Event) -> WatchDirResponse {
    WatchDirResponse { event: Some(event) }
}

fn describe(change: FilesystemEvent) -> Change {
    let kind = match change.r#type.as_known() {
        Some(EventType::EVENT_TYPE_CREATE) => Kind::KIND_CREATED,
        Some(EventType::EVENT_TYPE_WRITE) => Kind::KIND_WRITTEN,
        Some(EventType::EVENT_TYPE_REMOVE) => Kind::KIND_REMOVED,
        Some(EventType::EVENT_TYPE_RENAME) => Kind::KIND_RENAMED,
        Some(EventType::EVENT_TYPE_CHMOD) => Kind::KIND_MODE_CHANGED,
        Some(EventType::EVENT_TYPE_UNSPECIFIED) | None => Kind::KIND_UNSPECIFIED,
    };
    Change {
        name: change.name,
        kind: kind.into(),
    }
}
