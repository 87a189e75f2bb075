//! The connection to an agent.

use anyhow::{Context, anyhow};
use wrenn_proto::connectrpc::client::{ClientConfig, HttpClient};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::HostAgentClient;
use wrenn_proto::reason;

/// The longest answer that is taken: a file of 16 MiB, and what is said about it.
const MAX_MESSAGE: usize = 32 << 20;

/// An agent that we talk to. Cheap to clone.
#[derive(Clone)]
pub(super) struct AgentClient {
    pub(super) rpc: HostAgentClient<HttpClient>,
    url: String,
}

impl AgentClient {
    /// A client for the agent at `url` that presents `token`, if it has one. It sends nothing
    /// yet.
    pub(super) fn new(url: &str, token: Option<&str>) -> anyhow::Result<Self> {
        let uri = url
            .parse()
            .with_context(|| format!("'{url}' is no URL; one is like http://127.0.0.1:7410"))?;
        let mut config = ClientConfig::new(uri)
            .proto()
            .with_default_max_message_size(MAX_MESSAGE);
        if let Some(token) = token {
            config = config.with_default_header("authorization", format!("Bearer {token}"));
        }
        Ok(Self {
            // Streams in both directions need HTTP/2.
            rpc: HostAgentClient::new(HttpClient::plaintext_http2_only(), config),
            url: url.to_owned(),
        })
    }

    /// The answer, or what the agent says instead, ready to be shown.
    pub(super) fn check<T>(&self, answer: Result<T, ConnectError>) -> anyhow::Result<T> {
        answer.map_err(|error| self.explain(&error))
    }

    pub(super) fn explain(&self, error: &ConnectError) -> anyhow::Error {
        let said = error.message.clone().unwrap_or_else(|| error.to_string());
        // The library's own words, not an agent's, which gives a reason: the request never got
        // there. An agent that cannot connect to a guest says so in like words.
        let is_ours = reason::of(error).is_none();
        if error.code == ErrorCode::Unavailable && is_ours && said.contains("(Connect)") {
            return anyhow!(
                "no agent answers at {}; is wrenn-agent running, and is --agent right?",
                self.url
            );
        }
        if error.code == ErrorCode::Unauthenticated {
            return anyhow!("{said}; give it by --token-file or WRENN_AGENT_TOKEN");
        }
        anyhow!(said)
    }
}

#[cfg(test)]
mod tests {
    use wrenn_proto::hostagent::Reason;

    use super::*;

    #[test]
    fn guests_failure_is_not_the_agents() {
        let client = AgentClient::new("http://127.0.0.1:7410", None).unwrap();
        let said = "cannot reach the guest: client error (Connect)";
        let of_transport = ConnectError::unavailable(said);
        let explained = client.explain(&of_transport).to_string();
        assert!(explained.contains("no agent answers"), "{explained}");
        let reason = Reason::REASON_GUEST_UNAVAILABLE;
        let of_agent = reason::with_reason(of_transport, reason, None);
        assert_eq!(client.explain(&of_agent).to_string(), said);
    }
}
