//! A fake host, a server in front of it with threads of its own, and a client of the agent.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use wrenn_proto::connectrpc::client::{ClientBody, ClientConfig, ServiceTransport};
use wrenn_proto::hostagent::HostAgentClient;
use wrenn_sdk::{Client, Sandbox};
use wrenn_server::{HostEndpoint, Server, ServerHandle, Settings, Store};
use wrenn_testing::FakeHost;

pub(crate) type Agent = HostAgentClient<ServiceTransport<HttpClient<HttpConnector, ClientBody>>>;

/// The longest message: a whole file of 16 MiB.
const MAX_MESSAGE: usize = 32 << 20;

pub(crate) struct Environment {
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
    /// Straight to the host.
    pub(crate) agent: Agent,
    pub(crate) sandbox: Sandbox,
    pub(crate) database: PathBuf,
    server: ServerHandle,
    threads: Runtime,
    host: FakeHost,
    _directory: TempDir,
}

impl Environment {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let host = FakeHost::start().await?;
        let directory = tempfile::tempdir()?;
        let database = directory.path().join("server.db");
        let threads = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let endpoint = HostEndpoint {
            name: "fake".to_owned(),
            url: host.url(),
            token: host.token().context("the host has a token")?.to_owned(),
        };
        let agent = agent(&endpoint)?;
        let file = database.clone();
        let starting = threads.spawn(async move {
            let mut settings = Settings::default();
            // Rows that the host never had are none of its business.
            settings.reconcile_interval = Duration::from_secs(24 * 3600);
            settings.host_stale_after = Duration::from_secs(48 * 3600);
            let store = Store::open_sqlite(&file).await?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let server = Server::builder()
                .settings(settings)
                .store(store)
                .host(endpoint)
                .start(listener)
                .await?;
            let key = server.create_api_key("bench").await?.secret;
            anyhow::Ok((server, key))
        });
        let (server, key) = starting.await??;
        let address = server.address();
        let sdk = Client::builder()
            .url(format!("http://{address}"))
            .key(&key)
            .build()?;
        let sandbox = sdk.sandboxes().create("base").await?;
        Ok(Self {
            address,
            key,
            agent,
            sandbox,
            database,
            server,
            threads,
            host,
            _directory: directory,
        })
    }

    pub(crate) async fn end(self) {
        drop(self.host);
        self.threads.spawn(self.server.shut_down()).await.ok();
        self.threads.shutdown_background();
    }
}

/// A client as the server has one, without the server.
fn agent(endpoint: &HostEndpoint) -> anyhow::Result<Agent> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let http = HttpClient::builder(TokioExecutor::new())
        .http2_only(true)
        .http2_initial_stream_window_size(2 << 20)
        .http2_initial_connection_window_size(64 << 20)
        .build(connector);
    let config = ClientConfig::new(endpoint.url.parse()?)
        .proto()
        .with_default_max_message_size(MAX_MESSAGE)
        .with_default_header("authorization", format!("Bearer {}", endpoint.token));
    Ok(HostAgentClient::new(ServiceTransport::new(http), config))
}
