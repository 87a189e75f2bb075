//! Client for the daemon in the guest.
//!
//! ```text
//! GuestClient ──Connect RPC (binary)──▶ process.Process, filesystem.Filesystem ┐
//!             ──plain HTTP────────────▶ /health /init /files                   ├ envd, port 49983
//! ```
//!
//! The guest is hostile: what it answers is bounded in size and time, and nothing it says
//! is trusted further than the sandbox it comes from.

mod error;
mod files;
mod health;
mod http;
mod input;
mod process;

pub use error::{GuestError, RpcCode};
pub use files::{Entry, EntryKind};
pub use health::UnhealthyError;
pub use input::ProcessInput;
pub use process::{
    Command, CommandOutput, ExitStatus, GuestProcess, ProcessEvent, ProcessSummary, PtySize, Signal,
};
pub use wrenn_proto::http::{ENVD_PORT, InitRequest, Metrics};

use std::fmt;
use std::net::SocketAddr;

use wrenn_proto::connectrpc::client::{ClientConfig, HttpClient};
use wrenn_proto::filesystem::FilesystemClient;
use wrenn_proto::http::ACCESS_TOKEN_HEADER;
use wrenn_proto::process::ProcessClient;

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
    processes: ProcessClient<HttpClient>,
    files: FilesystemClient<HttpClient>,
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
        let transport = HttpClient::plaintext();
        Ok(Self {
            address,
            token,
            processes: ProcessClient::new(transport.clone(), config.clone()),
            files: FilesystemClient::new(transport, config),
            http: http::PlainClient::new(address),
        })
    }

    /// Where the daemon listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
