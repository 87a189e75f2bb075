//! Connect RPC to the agent of one host, over HTTP/2.
//!
//! Three connections, so that streams whose readers are slow hold up neither calls nor
//! transfers. Output on its way to a reader is bounded by the window of its stream: with the
//! buffers before and behind it, it stays below what the guest daemon keeps for a reader that
//! reconnects.

use std::time::Duration;

use http::HeaderValue;
use http::header::AUTHORIZATION;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use wrenn_proto::connectrpc::client::{ClientBody, ClientConfig, ServiceTransport};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::{HostAgentClient, Reason, State};

use super::HostEndpoint;

/// The longest message: a file of 16 MiB, and what is said about it.
const MAX_MESSAGE: usize = 32 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A host that answers no ping for this long is gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Output of one command on its way to us.
const EXEC_WINDOW: u32 = 256 << 10;
/// Bytes of one file on their way to us.
const FILE_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

pub(crate) type Transport = ServiceTransport<Client<HttpConnector, ClientBody>>;
pub(crate) type Rpc = HostAgentClient<Transport>;

/// A client of one agent. Cheap to clone. Nothing is sent until it is used.
#[derive(Clone)]
pub(crate) struct HostClient {
    /// Calls with one answer.
    pub(crate) calls: Rpc,
    /// Commands that are followed, watches and logs.
    pub(crate) streams: Rpc,
    /// Files and archives.
    pub(crate) files: Rpc,
}

/// The URL or the token of a host cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the URL or the token of host {name} cannot be used: {reason}")]
pub struct InvalidEndpoint {
    name: String,
    reason: String,
}

impl HostClient {
    pub(crate) fn new(endpoint: &HostEndpoint) -> Result<Self, InvalidEndpoint> {
        let invalid = |reason: String| InvalidEndpoint {
            name: endpoint.name.clone(),
            reason,
        };
        let url: http::Uri = endpoint
            .url
            .parse()
            .map_err(|error: http::uri::InvalidUri| invalid(error.to_string()))?;
        let mut config = ClientConfig::new(url)
            .proto()
            .with_default_max_message_size(MAX_MESSAGE);
        if !endpoint.token.is_empty() {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {}", endpoint.token)).map_err(|_| {
                    invalid("the token has characters that a header cannot have".into())
                })?;
            value.set_sensitive(true);
            config = config.with_default_header(AUTHORIZATION, value);
        }
        let rpc =
            |window| HostAgentClient::new(ServiceTransport::new(http2(window)), config.clone());
        Ok(Self {
            calls: rpc(FILE_WINDOW),
            streams: rpc(EXEC_WINDOW),
            files: rpc(FILE_WINDOW),
        })
    }
}

impl std::fmt::Debug for HostClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostClient").finish_non_exhaustive()
    }
}

fn http2(stream_window: u32) -> Client<HttpConnector, ClientBody> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    Client::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_initial_stream_window_size(stream_window)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .build(connector)
}

/// Why a host did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// It did not answer, so what it did is not known.
    #[error("the host did not answer")]
    Unreachable(#[source] ConnectError),
    /// It refused or failed, and said why.
    #[error("the host answered: {message}")]
    Refused {
        reason: Reason,
        state: Option<State>,
        message: String,
    },
}

impl HostError {
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { reason, .. } => Some(*reason),
            Self::Unreachable(_) => None,
        }
    }
}

impl From<ConnectError> for HostError {
    fn from(error: ConnectError) -> Self {
        let Some(info) = wrenn_proto::reason::of(&error) else {
            // Words of the transport, and not of an agent.
            return match error.code {
                ErrorCode::InvalidArgument | ErrorCode::Unimplemented => Self::Refused {
                    reason: Reason::REASON_INTERNAL,
                    state: None,
                    message: error.message.unwrap_or_default(),
                },
                _ => Self::Unreachable(error),
            };
        };
        Self::Refused {
            reason: info.reason.as_known().unwrap_or_default(),
            state: info
                .state
                .as_known()
                .filter(|state| *state != State::STATE_UNSPECIFIED),
            message: error.message.unwrap_or_default(),
        }
    }
}
