//! Builds a server, serves, and shuts down.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Settings;
use crate::hosts::client::{HostClient, InvalidEndpoint};
use crate::hosts::reconciler::Reconciler;
use crate::hosts::{HostEndpoint, HostPool};
use crate::http::listener;
use crate::http::router;
use crate::service::{App, AppParts};
use crate::store::{NewKey, Store, StoreError};

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The builder was not given a store.
    #[error("a server needs a store; call ServerBuilder::store")]
    NoStore,
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A host cannot be reached that way.
    #[error(transparent)]
    Host(#[from] InvalidEndpoint),
    /// The listener cannot be used.
    #[error("failed to read the address of the listener")]
    Listener(#[source] std::io::Error),
}

/// What a server is made of.
#[derive(Debug, Default)]
pub struct ServerBuilder {
    settings: Settings,
    clock: Clock,
    store: Option<Store>,
    hosts: Vec<HostEndpoint>,
}

impl ServerBuilder {
    /// Other settings than the default ones.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Another clock than the host's.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The database.
    #[must_use]
    pub fn store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// One more host. Its row is found by its name, or made.
    #[must_use]
    pub fn host(mut self, endpoint: HostEndpoint) -> Self {
        self.hosts.push(endpoint);
        self
    }

    /// Starts the server on a listener. It serves when this returns.
    ///
    /// # Errors
    /// When there is no store, the database cannot be used, or a host's URL makes no sense.
    pub async fn start(self, listener: TcpListener) -> Result<ServerHandle, StartError> {
        let store = self.store.ok_or(StartError::NoStore)?;
        let address = listener.local_addr().map_err(StartError::Listener)?;
        let now = self.clock.micros();
        store.release_stale_leases().await?;
        let default_team = store.default_team(now).await?;
        let hosts = HostPool::default();
        for endpoint in &self.hosts {
            let client = HostClient::new(endpoint)?;
            let record = store.host_named(&endpoint.name, now).await?;
            hosts.insert(record.id, client);
        }
        let app = Arc::new(App::new(AppParts {
            settings: self.settings,
            clock: self.clock,
            store,
            hosts,
            default_team,
        }));
        for id in app.hosts.ids() {
            app.tasks.spawn(Reconciler::new(Arc::clone(&app), id).run());
        }
        let routes = router::router(&app);
        app.tasks
            .spawn(listener::serve(Arc::clone(&app), listener, routes));
        Ok(ServerHandle { app, address })
    }
}

/// The control plane.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// What a server is made of, to be filled in.
    #[must_use]
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }
}

/// A server that runs. Dropped without [`shut_down`](Self::shut_down) it is cut off, as if its
/// process had been killed; its tasks end with their runtime.
#[derive(Debug)]
pub struct ServerHandle {
    app: Arc<App>,
    address: SocketAddr,
}

impl ServerHandle {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A link that logs one browser in, once, within five minutes, and leads to the test page.
    #[must_use]
    pub fn login_link(&self) -> String {
        let ticket = self.app.access.create_ticket();
        // A fragment is sent to no server and stands in no log.
        format!("http://{}/test#ticket={ticket}", self.address)
    }

    /// Makes an API key of the default team. The secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn create_api_key(&self, name: &str) -> Result<NewKey, StoreError> {
        let app = &self.app;
        app.store
            .create_key(&app.default_team, name, app.clock.micros())
            .await
    }

    /// Reaches a host in another way from now on: its machine was started again, and has
    /// another port.
    ///
    /// # Errors
    /// When there is no host of this name, or its URL makes no sense.
    pub async fn replace_host(&self, endpoint: &HostEndpoint) -> Result<(), StartError> {
        let client = HostClient::new(endpoint)?;
        let now = self.app.clock.micros();
        let record = self.app.store.host_named(&endpoint.name, now).await?;
        self.app.hosts.insert(record.id, client);
        Ok(())
    }

    /// Whether a secret is a valid API key.
    pub async fn is_valid_key(&self, secret: &str) -> bool {
        self.app.team_of_key(secret).await.is_ok()
    }

    /// Cancelled when the server begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.app.shutdown.clone()
    }

    /// Stops: takes no new request, lets those under way end within the grace of the settings,
    /// waits for every change to be finished, and closes the database.
    pub async fn shut_down(self) {
        self.app.shutdown.cancel();
        self.app.tasks.close();
        self.app.tasks.wait().await;
        self.app.store.close().await;
    }
}
