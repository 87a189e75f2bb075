//! Following changes under a directory of the guest.

use std::fmt;

use futures::StreamExt;
use futures::stream::BoxStream;
use wrenn_proto::connectrpc::client::CallOptions;
use wrenn_proto::filesystem::watch_dir_response::Event;
use wrenn_proto::filesystem::{EventType, FilesystemEvent, WatchDirRequest};

use super::process::keep_alive;
use super::{GuestClient, GuestError};

const WHAT: &str = "watching a directory";

/// A directory that is being watched. Dropping it ends the watch.
pub struct GuestWatch {
    events: BoxStream<'static, Result<Event, GuestError>>,
}

impl fmt::Debug for GuestWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestWatch").finish_non_exhaustive()
    }
}

/// Something that happened under a watched directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Relative to the watched directory.
    pub name: String,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Created,
    /// Something was written into it.
    Written,
    /// It is gone.
    Removed,
    /// It has another name now, which comes as [`Created`](Self::Created) if it is watched.
    Renamed,
    /// Its owner, mode or times are others.
    ModeChanged,
    /// A kind that this program does not know.
    Unknown,
}

impl From<FilesystemEvent> for Change {
    fn from(event: FilesystemEvent) -> Self {
        let kind = match event.r#type.as_known() {
            Some(EventType::EVENT_TYPE_CREATE) => ChangeKind::Created,
            Some(EventType::EVENT_TYPE_WRITE) => ChangeKind::Written,
            Some(EventType::EVENT_TYPE_REMOVE) => ChangeKind::Removed,
            Some(EventType::EVENT_TYPE_RENAME) => ChangeKind::Renamed,
            Some(EventType::EVENT_TYPE_CHMOD) => ChangeKind::ModeChanged,
            Some(EventType::EVENT_TYPE_UNSPECIFIED) | None => ChangeKind::Unknown,
        };
        Self {
            name: event.name,
            kind,
        }
    }
}

impl GuestClient {
    /// Watches the directory at `path`, with those below it if `recursive`. Once this
    /// returns, no change is missed.
    ///
    /// # Errors
    /// When it is no directory or cannot be watched.
    pub async fn watch_dir(&self, path: &str, recursive: bool) -> Result<GuestWatch, GuestError> {
        let request = WatchDirRequest {
            path: path.to_owned(),
            recursive,
            ..WatchDirRequest::default()
        };
        let options = keep_alive(WHAT, CallOptions::default())?;
        let stream = self
            .files
            .watch_dir_with_options(request, options)
            .await
            .map_err(GuestError::rpc(WHAT))?;
        let mut events = futures::stream::try_unfold(stream, |mut stream| async move {
            loop {
                match stream.message().await.map_err(GuestError::rpc(WHAT))? {
                    Some(message) => {
                        if let Some(event) = message.to_owned_message().event {
                            return Ok(Some((event, stream)));
                        }
                    }
                    None => return Ok(None),
                }
            }
        })
        .boxed();
        loop {
            match events.next().await {
                Some(Ok(Event::Start(_))) => return Ok(GuestWatch { events }),
                Some(Ok(Event::Keepalive(_))) => {}
                Some(Ok(Event::Filesystem(_))) => {
                    return Err(out_of_turn("a change before the start"));
                }
                Some(Err(error)) => return Err(error),
                None => return Err(out_of_turn("the stream ended before the start")),
            }
        }
    }
}

impl GuestWatch {
    /// The next change.
    ///
    /// # Errors
    /// When the connection breaks, or changes came faster than they were taken.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Change, GuestError> {
        loop {
            match self.events.next().await {
                Some(Ok(Event::Filesystem(event))) => return Ok(Change::from(*event)),
                Some(Ok(Event::Start(_) | Event::Keepalive(_))) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(out_of_turn("the stream ended")),
            }
        }
    }
}

fn out_of_turn(reason: &str) -> GuestError {
    GuestError::Protocol {
        what: WHAT,
        reason: reason.to_owned(),
    }
}
