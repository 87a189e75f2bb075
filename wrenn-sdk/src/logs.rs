//! A sandbox's console, and the output of its start command.

use std::future::IntoFuture;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Method;
use wrenn_api::id::SandboxId;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::transport::{Call, whole};

/// Reads the console when it is awaited: its end, as the host keeps it.
///
/// The bytes come from the guest and may hold control codes of a terminal.
#[derive(Clone, Debug)]
#[must_use = "nothing is read until it is awaited"]
pub struct Logs {
    client: Client,
    sandbox: SandboxId,
    source: &'static str,
    query: Vec<(&'static str, String)>,
}

impl Logs {
    pub(crate) fn new(client: Client, sandbox: SandboxId) -> Self {
        Self {
            client,
            sandbox,
            source: "console",
            query: Vec::new(),
        }
    }

    /// The output of the template's start command, in place of the console, as far as the guest
    /// keeps it. The sandbox must run. An error where there is no such command, or it ended
    /// more than half a minute ago.
    pub fn start_command(mut self) -> Self {
        self.source = "start";
        self
    }

    /// How many bytes of its end.
    pub fn tail(mut self, bytes: u64) -> Self {
        self.query.push(("tail", bytes.to_string()));
        self
    }

    /// From the start on, in place of the end.
    pub fn from_start(mut self) -> Self {
        self.query.push(("start", "true".to_owned()));
        self
    }

    /// Goes on with what is said from then on.
    ///
    /// # Errors
    /// `not_found` when the sandbox is gone, or has no start command whose output is wanted.
    pub async fn follow(mut self) -> Result<LogStream> {
        self.query.push(("follow", "true".to_owned()));
        let response = self.client.transport.send(self.call()?).await?;
        Ok(LogStream { response })
    }

    fn call(&self) -> Result<Call> {
        let path = ["v1", "sandboxes", self.sandbox.as_str(), "logs"];
        let mut query = self.query.clone();
        query.push(("source", self.source.to_owned()));
        self.client.call_with(Method::GET, &path, &query)
    }
}

impl IntoFuture for Logs {
    type Output = Result<Bytes>;
    type IntoFuture = BoxFuture<'static, Result<Bytes>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let response = self.client.transport.send(self.call()?).await?;
            whole("GET …/logs", response).await
        })
    }
}

/// A log as it grows.
#[derive(Debug)]
pub struct LogStream {
    response: reqwest::Response,
}

impl LogStream {
    /// The next bytes; nothing at the end, which comes with the end of the sandbox, or of its
    /// start command.
    ///
    /// # Errors
    /// When the connection breaks.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let request_id = crate::transport::request_id(self.response.headers());
        let chunk = self.response.chunk().await;
        chunk.map_err(|error| Error::Disconnected {
            request: "GET …/logs".to_owned(),
            request_id,
            source: error.without_url().into(),
        })
    }
}
