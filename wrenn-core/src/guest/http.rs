//! The plain HTTP half of the daemon's protocol.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use wrenn_proto::http::{ACCESS_TOKEN_HEADER, ErrorBody, InitRequest, Metrics};

use super::{AccessToken, GuestClient, GuestError};

/// The longest answer that is read whole; files are streamed instead.
const MAX_ANSWER_BYTES: usize = 1 << 20;

pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// An HTTP client with kept-alive connections to one daemon.
#[derive(Clone)]
pub(super) struct PlainClient {
    address: SocketAddr,
    client: Client<HttpConnector, Body>,
}

impl PlainClient {
    pub(super) fn new(address: SocketAddr) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(std::time::Duration::from_secs(10)));
        Self {
            address,
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Sends a request and hands back an answer of success; any other becomes an error.
    pub(super) async fn send(
        &self,
        what: &'static str,
        token: Option<&AccessToken>,
        method: Method,
        path_and_query: &str,
        headers: &[(header::HeaderName, String)],
        body: Body,
    ) -> Result<Response<Incoming>, GuestError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path_and_query}", self.address));
        if let Some(token) = token {
            request = request.header(ACCESS_TOKEN_HEADER, token.reveal());
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(|error| GuestError::Request {
            what,
            reason: error.to_string(),
        })?;
        let response = self
            .client
            .request(request)
            .await
            .map_err(|e| GuestError::transport(what, e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = collect(what, response).await.unwrap_or_default();
        let message = serde_json::from_slice::<ErrorBody>(&body).map_or_else(
            |_| String::from_utf8_lossy(&body).into_owned(),
            |error| error.message,
        );
        Err(GuestError::Status {
            what,
            status: status.as_u16(),
            message,
        })
    }
}

/// A body that is in memory already.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Reads a short answer whole.
pub(super) async fn collect(
    what: &'static str,
    response: Response<Incoming>,
) -> Result<Bytes, GuestError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(source) => Err(GuestError::Transport {
            what,
            source: std::io::Error::other(source),
        }),
    }
}

impl GuestClient {
    /// Tells the guest what it must know after every boot and resume: the time, entropy,
    /// its token and name. A token in `request` is used by this client from then on.
    ///
    /// # Errors
    /// When the daemon refuses, as it does without the token that it has already.
    pub async fn init(&mut self, request: &InitRequest) -> Result<(), GuestError> {
        const WHAT: &str = "the guest's set-up";
        let json = serde_json::to_vec(request).map_err(|error| GuestError::Request {
            what: WHAT,
            reason: error.to_string(),
        })?;
        let headers = [(header::CONTENT_TYPE, "application/json".to_owned())];
        let response = self
            .http
            .send(
                WHAT,
                self.token.as_ref(),
                Method::POST,
                "/init",
                &headers,
                full(json),
            )
            .await?;
        collect(WHAT, response).await?;
        if let Some(token) = &request.access_token {
            // An empty one opens the guest.
            let token = (!token.is_empty()).then(|| AccessToken::new(token.clone()));
            *self = Self::new(self.address, token)?;
        }
        Ok(())
    }

    /// Has the guest bring to its disks what was written. A guest whose daemon cannot do so
    /// keeps it in its memory.
    ///
    /// # Errors
    /// When the daemon refuses or does not answer.
    pub async fn sync(&self) -> Result<(), GuestError> {
        self.ask("syncing disks", "/sync").await
    }

    /// Lets programs stand still until [`thaw`](Self::thaw). A guest whose daemon cannot do
    /// so goes on.
    ///
    /// # Errors
    /// When the daemon refuses or does not answer.
    pub async fn freeze(&self) -> Result<(), GuestError> {
        self.ask("freezing programs", "/freeze").await
    }

    /// Lets programs go on.
    ///
    /// # Errors
    /// When the daemon refuses or does not answer.
    pub async fn thaw(&self) -> Result<(), GuestError> {
        self.ask("letting programs go on", "/thaw").await
    }

    async fn ask(&self, what: &'static str, path: &str) -> Result<(), GuestError> {
        let token = self.token.as_ref();
        let nothing = full(Bytes::new());
        let sent = self
            .http
            .send(what, token, Method::POST, path, &[], nothing)
            .await;
        match sent {
            Ok(response) => collect(what, response).await.map(drop),
            // A daemon of before.
            Err(GuestError::Status { status: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What the guest uses at this moment.
    ///
    /// # Errors
    /// When the daemon refuses or answers nonsense.
    pub async fn metrics(&self) -> Result<Metrics, GuestError> {
        const WHAT: &str = "metrics";
        let response = self
            .http
            .send(
                WHAT,
                self.token.as_ref(),
                Method::GET,
                "/metrics",
                &[],
                full(Bytes::new()),
            )
            .await?;
        let body = collect(WHAT, response).await?;
        serde_json::from_slice(&body).map_err(|error| GuestError::Protocol {
            what: WHAT,
            reason: error.to_string(),
        })
    }
}
