//! Starting and stopping.
//!
//! ```text
//! start:  lock the root directory ─▶ bind ─▶ open the host ─▶ take sandboxes over ─▶ serve
//! stop:   accept no more ─▶ end streams, finish calls ─▶ leave the sandboxes ─▶ unlock
//! ```
//!
//! Addresses are bound before any sandbox is touched, so that a start that fails over a
//! taken port changes nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use wrenn_core::Chain;
use wrenn_core::fleet::{Fleet, OpenFleetError};
use wrenn_core::network::PoolConfig;
use wrenn_core::sandbox::{Host, HostConfig, OpenHostError};

use crate::access::{AgentToken, Guard};
use crate::config::Config;
use crate::generated::{self, GeneratedFileError};
use crate::lock::{AgentLock, LockError};
use crate::metrics::Metrics;
use crate::server::{Face, Server, State};
use crate::{descriptors, kvm};

/// A running agent. Dropping it does not stop it: its sandboxes would be lost to it.
#[derive(Debug)]
#[must_use = "an agent that is not stopped keeps its sandboxes from the next one"]
pub struct Agent {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    token: AgentToken,
    fleet: Fleet,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    _lock: AgentLock,
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Signals cannot be listened for.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    /// Another agent has the root directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file that every start reads cannot be read or made.
    #[error(transparent)]
    File(#[from] GeneratedFileError),
    /// An address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host cannot run sandboxes.
    #[error("this host cannot run sandboxes")]
    Host(#[from] OpenHostError),
    /// What runs already cannot be taken over.
    #[error("cannot take over the sandboxes of the agent before")]
    Fleet(#[from] OpenFleetError),
}

impl Agent {
    /// Takes over what runs on the host, and serves.
    ///
    /// # Errors
    /// When the host lacks something, or another agent has it. Sandboxes are left as they
    /// are.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, |config| async move {
            let host = HostConfig {
                root: config.root,
                vmm: config.vmm,
                pager: config.pager,
                network: config.network,
                pool: PoolConfig {
                    size: config.slot_pool_size.into(),
                    ..PoolConfig::default()
                },
                boot_deadline: config.boot_deadline,
                disk_limits: config.disk_limits,
                device_limits: config.device_limits,
                ..HostConfig::default()
            };
            // Adoption opens those of every sandbox at once.
            descriptors::raise(&config.limits);
            let fleet = Fleet::open(Host::open(host).await?, config.limits).await?;
            if let Err(problem) = kvm::check() {
                warn!(
                    problem = %Chain(&problem),
                    "no sandbox will start here; wrenn up runs them in a machine of its own"
                );
            }
            Ok(fleet)
        })
        .await
    }

    /// Serves on a host that cannot create sandboxes: neither root nor KVM is needed.
    ///
    /// # Errors
    /// When another agent has the root directory, or an address is taken.
    pub async fn start_without_host(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, |config| async move {
            Ok(Fleet::without_host(config.root, config.limits))
        })
        .await
    }

    async fn start_with<F>(
        config: Config,
        open: impl FnOnce(Config) -> F,
    ) -> Result<Self, StartError>
    where
        F: Future<Output = Result<Fleet, StartError>>,
    {
        let lock = AgentLock::acquire(&config.root)?;
        let root_id = generated::root_id(&config.root)?;
        let token = AgentToken::new(generated::token(&config.token_file)?);
        let guard = Guard::new(token.clone(), config.allowed_hosts.clone());
        let (listener, address) = bind(config.listen).await?;
        let metrics_listener = match config.metrics_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let fleet = open(config).await?;

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let metrics = Metrics::new();
        tasks.spawn(metrics.clone().follow(fleet.events(), shutdown.clone()));
        let state = Arc::new(State {
            fleet: fleet.clone(),
            root_id,
            guard,
            metrics,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        });
        let server = Server::new(Arc::clone(&state), Face::Everything);
        tasks.spawn(server.serve(listener));
        let metrics_address = metrics_listener.map(|(listener, address)| {
            let server = Server::new(state, Face::MetricsOnly);
            tasks.spawn(server.serve(listener));
            address
        });
        if !address.ip().is_loopback() {
            warn!(%address, "listens beyond loopback without TLS");
        }
        info!(%address, sandboxes = fleet.list().len(), "the agent serves");
        Ok(Self {
            address,
            metrics_address,
            token,
            fleet,
            shutdown,
            tasks,
            _lock: lock,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for its metrics alone.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// The secret that callers present.
    #[must_use]
    pub fn token(&self) -> &AgentToken {
        &self.token
    }

    /// Stops. Calls under way are answered, within limits; streams end with `unavailable`;
    /// steps of sandboxes' lives are finished; sandboxes keep running.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.fleet.leave().await;
        info!("the agent has left");
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
