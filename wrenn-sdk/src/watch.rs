//! Changes in a directory of a sandbox.

use futures::StreamExt as _;
use reqwest::Url;
use wrenn_api::file::{ChangeKind, WatchMessage};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::websocket::{self, Message, Socket};

/// A change in a watched directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The path, relative to the directory.
    pub name: String,
    /// The kind of the change.
    pub kind: ChangeKind,
}

/// Tells each change in a directory, from [`Files::watch`](crate::Files::watch).
pub struct Watcher {
    socket: Socket,
    path: String,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Watcher {
    pub(crate) async fn open(client: &Client, url: &Url) -> Result<Self> {
        let socket = websocket::open(&client.transport, url, None).await?;
        let mut watcher = Self {
            socket,
            path: url.path().to_owned(),
        };
        while !matches!(watcher.message().await?, WatchMessage::Watching) {}
        Ok(watcher)
    }

    /// The next change.
    ///
    /// # Errors
    /// When the watch is over: the sandbox was paused or destroyed, or the connection broke.
    /// Changes may be missed until the next watch, so look at the directory again.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Result<Change> {
        loop {
            if let WatchMessage::Change { name, kind } = self.message().await? {
                return Ok(Change { name, kind });
            }
        }
    }

    /// Ends the watch.
    pub async fn close(mut self) {
        // The server notices either way.
        let _closed = self.socket.close(None).await;
    }

    async fn message(&mut self) -> Result<WatchMessage> {
        loop {
            let message = match self.socket.next().await {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(self.broken(error.into())),
                None => return Err(self.broken("the server closed it".into())),
            };
            let Message::Text(text) = message else {
                continue;
            };
            let message = serde_json::from_str(&text).map_err(|error| Error::Protocol {
                request: format!("GET {}", self.path),
                problem: error.to_string(),
                request_id: None,
            })?;
            if let WatchMessage::Error { code, message } = message {
                return Err(Error::message(code, message));
            }
            return Ok(message);
        }
    }

    fn broken(&self, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error::Disconnected {
            request: format!("GET {}", self.path),
            request_id: None,
            source,
        }
    }
}
