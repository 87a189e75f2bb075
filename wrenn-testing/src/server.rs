//! A server in the test's process, in front of a fake host.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinError;
use wrenn_sdk::Client;
use wrenn_server::clock::Clock;
use wrenn_server::server::StartError;
use wrenn_server::store::StoreError;
use wrenn_server::{HostEndpoint, Server, ServerHandle, Settings, Store};

use crate::host::{FakeHost, FakeHostBuilder, StartFakeHostError};

/// How long the port of a killed server may be taken.
const REBIND_DEADLINE: Duration = Duration::from_secs(10);
const HOST_NAME: &str = "fake";
const DATABASE_FILE: &str = "server.db";

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartTestServerError {
    /// Its host did not start.
    #[error(transparent)]
    Host(#[from] StartFakeHostError),
    /// There is no room for the database.
    #[error("cannot make a directory for the database")]
    Directory(#[source] io::Error),
    /// It has no threads.
    #[error("cannot start a runtime for the server")]
    Runtime(#[source] io::Error),
    /// There is no port, or it is not free again after a restart.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server refused to start.
    #[error(transparent)]
    Server(#[from] StartError),
    /// It panicked.
    #[error("the server panicked while it started")]
    Panic(#[from] JoinError),
    /// There is no client for it.
    #[error(transparent)]
    Client(#[from] wrenn_sdk::Error),
}

/// A server to be started.
#[derive(Debug)]
#[must_use = "nothing is started yet"]
pub struct TestServerBuilder {
    settings: Settings,
    clock: Clock,
    host: FakeHostBuilder,
    database_url: Option<String>,
}

impl TestServerBuilder {
    /// Other settings. Unless set, rows are compared with the host every 50 ms.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Another clock than the machine's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// What its host has.
    pub fn host(mut self, host: FakeHostBuilder) -> Self {
        self.host = host;
        self
    }

    /// A PostgreSQL database, in place of a new SQLite one.
    pub fn postgres(mut self, url: impl Into<String>) -> Self {
        self.database_url = Some(url.into());
        self
    }

    /// Starts host and server.
    ///
    /// # Errors
    /// When either does not start.
    pub async fn start(self) -> Result<TestServer, StartTestServerError> {
        let host = self.host.start().await?;
        // It is removed with the host's, also when this process is killed.
        let directory = host.directory().join("server");
        std::fs::create_dir(&directory).map_err(StartTestServerError::Directory)?;
        let mut server = TestServer {
            running: None,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            api_key: String::new(),
            settings: self.settings,
            clock: self.clock,
            database_url: self.database_url,
            directory,
            host,
        };
        server.boot().await?;
        let key = server.create_api_key("test").await?;
        server.api_key = key;
        Ok(server)
    }
}

/// A server in this process, with a fake host, a database of its own and an API key. Dropping
/// it ends both.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use wrenn_testing::{Rpc, TestServer};
///
/// let mut server = TestServer::start().await?;
/// let sandbox = server.sdk()?.sandboxes().create("base").await?;
/// let result = sandbox.exec("echo", ["hello"]).await?;
/// assert_eq!(result.stdout_text(), "hello\n");
/// assert_eq!(server.host().calls(Rpc::CreateSandbox), 1);
/// server.kill().await;
/// server.boot().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TestServer {
    running: Option<Running>,
    address: SocketAddr,
    api_key: String,
    settings: Settings,
    clock: Clock,
    database_url: Option<String>,
    directory: PathBuf,
    host: FakeHost,
}

/// A server on threads of its own, which end with it.
#[derive(Debug)]
struct Running {
    handle: ServerHandle,
    runtime: Runtime,
}

impl TestServer {
    /// Starts one.
    ///
    /// # Errors
    /// When host or server do not start.
    pub async fn start() -> Result<Self, StartTestServerError> {
        Self::builder().start().await
    }

    /// Chooses what it is made of.
    pub fn builder() -> TestServerBuilder {
        let mut settings = Settings::default();
        settings.reconcile_interval = Duration::from_millis(50);
        TestServerBuilder {
            settings,
            clock: Clock::system(),
            host: FakeHost::builder(),
            database_url: None,
        }
    }

    /// Where it listens: `http://127.0.0.1:PORT`. It stays the same when it starts again.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A key that all of its routes take.
    #[must_use]
    pub fn api_key(&self) -> &str {
        &self.api_key
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &FakeHost {
        &self.host
    }

    /// The file of its database, unless that is a PostgreSQL one.
    #[must_use]
    pub fn database_file(&self) -> Option<PathBuf> {
        let is_sqlite = self.database_url.is_none();
        is_sqlite.then(|| self.directory.join(DATABASE_FILE))
    }

    /// Its clock, which moves by itself unless another was chosen.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The server itself, while it runs.
    #[must_use]
    pub fn handle(&self) -> Option<&ServerHandle> {
        self.running.as_ref().map(|running| &running.handle)
    }

    /// A client of it.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn sdk(&self) -> Result<Client, wrenn_sdk::Error> {
        Client::builder().url(self.url()).key(&self.api_key).build()
    }

    /// Makes one more API key, and gives its secret.
    ///
    /// # Errors
    /// When the database does not take it, or the server does not run.
    pub async fn create_api_key(&self, name: &str) -> Result<String, StartTestServerError> {
        let Some(running) = &self.running else {
            return Err(StartError::NoStore.into());
        };
        Ok(running.handle.create_api_key(name).await?.secret)
    }

    /// Stops it as a signal would, and waits until it has ended.
    pub async fn stop(&mut self) {
        if let Some(Running { handle, runtime }) = self.running.take() {
            // What panics in there is told by its own thread.
            runtime.spawn(handle.shut_down()).await.ok();
            runtime.shutdown_background();
        }
    }

    /// Ends it where it is, as SIGKILL would: every task stops at its next await. Returns when
    /// nobody listens on its port any longer.
    pub async fn kill(&mut self) {
        if !self.end() {
            return;
        }
        let since = Instant::now();
        while TcpStream::connect(self.address).await.is_ok() && since.elapsed() < REBIND_DEADLINE {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends it, and says whether it ran.
    fn end(&mut self) -> bool {
        let Some(Running { handle, runtime }) = self.running.take() else {
            return false;
        };
        drop(handle);
        runtime.shutdown_background();
        true
    }

    /// Starts it again, with the same database and port.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn boot(&mut self) -> Result<(), StartTestServerError> {
        self.kill().await;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("test server")
            .enable_all()
            .build()
            .map_err(StartTestServerError::Runtime)?;
        let (address, settings, clock) = (self.address, self.settings.clone(), self.clock.clone());
        let database = match &self.database_url {
            Some(url) => Database::Postgres(url.clone()),
            None => Database::Sqlite(self.directory.join(DATABASE_FILE)),
        };
        let endpoint = HostEndpoint {
            name: HOST_NAME.to_owned(),
            url: self.host.url(),
            token: self.host.token().unwrap_or_default().to_owned(),
        };
        let started = runtime.spawn(async move {
            let listener = listen(address).await?;
            let store = match database {
                Database::Sqlite(file) => Store::open_sqlite(&file).await?,
                Database::Postgres(url) => Store::connect_postgres(&url).await?,
            };
            let server = Server::builder()
                .settings(settings)
                .clock(clock)
                .store(store)
                .host(endpoint);
            Ok::<_, StartTestServerError>(server.start(listener).await?)
        });
        match started.await.map_err(StartTestServerError::from).flatten() {
            Ok(handle) => {
                self.address = handle.address();
                self.running = Some(Running { handle, runtime });
                Ok(())
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Stops it, and starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<(), StartTestServerError> {
        self.stop().await;
        self.boot().await
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.end();
    }
}

enum Database {
    Sqlite(PathBuf),
    Postgres(String),
}

/// A killed server's port is free once its tasks have ended.
async fn listen(address: SocketAddr) -> Result<TcpListener, StartTestServerError> {
    let since = Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(source)
                if source.kind() != io::ErrorKind::AddrInUse
                    || since.elapsed() > REBIND_DEADLINE =>
            {
                return Err(StartTestServerError::Listen { address, source });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
