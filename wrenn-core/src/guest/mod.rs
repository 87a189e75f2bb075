//! Client for the daemon in the guest.
//!
//! ```text
//! GuestClient ──Connect RPC (binary)──▶ process.Process, filesystem.Filesystem ┐
//!             ──plain HTTP────────────▶ /health /init /files /archive          ├ envd, port 49983
//! ```
//!
//! The guest is hostile: what it answers is bounded in size and time, and nothing it says
//! is trusted further than the sandbox it comes from.

mod archive;
mod error;
mod files;
mod health;
mod http;
mod input;
mod process;
mod watch;

pub use error::{GuestError, RpcCode};
pub use files::{Entry, EntryKind, FileContents};
pub use health::UnhealthyError;
pub use input::ProcessInput;
pub use process::{
    Command, CommandOutput, ExitStatus, GuestProcess, OutputOffsets, ProcessEvent, ProcessId,
    ProcessSummary, PtySize, Signal,
};
pub use watch::{Change, ChangeKind, GuestWatch};
pub use wrenn_proto::http::{ENVD_PORT, InitRequest, Metrics};

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use wrenn_proto::connectrpc::client::{ClientBody, ClientConfig, ServiceTransport};
use wrenn_proto::filesystem::FilesystemClient;
use wrenn_proto::http::ACCESS_TOKEN_HEADER;
use wrenn_proto::process::ProcessClient;

/// Connections to a daemon, as the RPCs use them.
type Transport = ServiceTransport<Client<HttpConnector, ClientBody>>;

/// How long a connection may take to be there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of a guest's messages that may wait in the kernel. A client that follows a command and
/// loses its connection asks for the bytes on their way again, and the guest keeps only so much:
/// the documentation of wrenn-envd's `process` module has the sum.
const RECEIVE_BUFFER: usize = 128 << 10;

fn transport() -> Transport {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_DEADLINE));
    connector.set_recv_buffer_size(Some(RECEIVE_BUFFER));
    ServiceTransport::new(Client::builder(TokioExecutor::new()).build(connector))
}

/// A secret that lets its bearer act as root in one guest.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

impl AccessToken {
    /// A new token, from 256 bits of the operating system's randomness.
    #[must_use]
    pub fn random() -> Self {
        use base64::Engine;
        let bytes: [u8; 32] = rand::random();
        Self(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
    }

    /// A token that was made elsewhere.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

/// Client of one guest's daemon. Cheap to clone.
#[derive(Clone)]
pub struct GuestClient {
    address: SocketAddr,
    token: Option<AccessToken>,
    /// Whom file operations act as; the template's default user where it is not set.
    user: Option<String>,
    transport: Transport,
    processes: ProcessClient<Transport>,
    files: FilesystemClient<Transport>,
    http: http::PlainClient,
}

impl fmt::Debug for GuestClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestClient")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl GuestClient {
    /// A client for the daemon at `address`. Nothing is sent yet.
    ///
    /// # Errors
    /// When the token cannot stand in a header.
    pub fn new(address: SocketAddr, token: Option<AccessToken>) -> Result<Self, GuestError> {
        let uri = format!("http://{address}")
            .parse()
            .map_err(|_| GuestError::Request {
                what: "address",
                reason: address.to_string(),
            })?;
        let mut config = ClientConfig::new(uri).proto();
        if let Some(token) = &token {
            let mut headers = ::http::HeaderMap::new();
            let value =
                ::http::HeaderValue::from_str(token.reveal()).map_err(|_| GuestError::Request {
                    what: "token",
                    reason: "it is no header value".to_owned(),
                })?;
            headers.insert(ACCESS_TOKEN_HEADER, value);
            config = config.with_default_headers(headers);
        }
        let transport = transport();
        Ok(Self {
            address,
            token,
            user: None,
            processes: ProcessClient::new(transport.clone(), config.clone()),
            files: FilesystemClient::new(transport.clone(), config),
            transport,
            http: http::PlainClient::new(address),
        })
    }

    /// The same client, whose file operations act as `user`: its home is where relative
    /// paths begin, and what it makes is its own.
    ///
    /// # Errors
    /// When the name cannot stand in a header.
    pub fn as_user(&self, user: &str) -> Result<Self, GuestError> {
        let invalid = |reason: &str| GuestError::Request {
            what: "user",
            reason: reason.to_owned(),
        };
        if user.contains(':') {
            return Err(invalid("a user's name has no colon"));
        }
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:"));
        let value = ::http::HeaderValue::from_str(&format!("Basic {basic}"))
            .map_err(|_| invalid("it is no header value"))?;
        let mut headers = self.files.config().default_headers().clone();
        headers.insert(::http::header::AUTHORIZATION, value);
        let config = self.files.config().clone().with_default_headers(headers);
        Ok(Self {
            user: Some(user.to_owned()),
            files: FilesystemClient::new(self.transport.clone(), config),
            ..self.clone()
        })
    }

    /// What lets its bearer act as root in the guest, where there is such a thing.
    #[must_use]
    pub fn token(&self) -> Option<&AccessToken> {
        self.token.as_ref()
    }

    /// Where the daemon listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
