//! The program `wrenn-server`: a control plane on its own, beside agents that run elsewhere.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Settings;
use crate::hosts::HostEndpoint;
use crate::server::{Server, StartError};
use crate::store::{Store, StoreError};

/// The database in the data directory.
const DATABASE_FILE: &str = "wrenn.db";
const LOCK_FILE: &str = "server.lock";

/// The control plane of Wrenn: REST and WebSocket in front of agents.
#[derive(Debug, Parser)]
#[command(name = "wrenn-server", version)]
struct Options {
    /// Address of the API.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "WRENN_LISTEN_ADDR",
        default_value = "127.0.0.1:7400"
    )]
    listen: SocketAddr,
    /// Host names, besides loopback, under which it answers.
    #[arg(
        long,
        value_name = "NAMES",
        env = "WRENN_ALLOWED_HOSTS",
        value_delimiter = ','
    )]
    allowed_hosts: Vec<String>,
    /// Directory of the database.
    #[arg(
        long,
        value_name = "DIR",
        env = "WRENN_DATA_DIR",
        default_value = "/var/lib/wrenn/server"
    )]
    data_dir: PathBuf,
    /// PostgreSQL, in place of the SQLite file in the data directory: postgres://…
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Where the agent listens.
    #[arg(
        long,
        value_name = "URL",
        env = "WRENN_AGENT_URL",
        default_value = "http://127.0.0.1:7410"
    )]
    agent_url: String,
    /// File with the agent's token.
    #[arg(
        long,
        value_name = "PATH",
        env = "WRENN_AGENT_TOKEN_FILE",
        default_value = "/var/lib/wrenn/agent-token"
    )]
    agent_token_file: PathBuf,
    /// Make an API key, print it, and leave.
    #[arg(long, value_name = "NAME")]
    create_key: Option<String>,
    /// What is logged, as tracing-subscriber understands it.
    #[arg(long, value_name = "FILTER", env = "WRENN_LOG", default_value = "info")]
    log: String,
}

/// Why the program ends.
#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error("failed to create the directory {}", .path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "another server uses {}; stop it first, or use another --data-dir",
        .path.display()
    )]
    Locked { path: PathBuf },
    #[error("failed to read the agent's token from {}", .path.display())]
    Token {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("failed to listen for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Runs the program with the given arguments, the program's name first.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => {
            // Printing help to a closed pipe is no failure.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let filter = tracing_subscriber::EnvFilter::new(&options.log);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(io::stderr)
        .try_init()
        .ok();
    if let Err(error) = wrenn_nss::use_files_and_dns() {
        eprintln!("wrenn-server: failed to choose how host names are resolved: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(options)),
        Err(error) => Err(ProgramError::Signals(error)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wrenn-server: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    crate::http::error::chain(error)
}

async fn run(options: Options) -> Result<(), ProgramError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ProgramError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ProgramError::Signals)?;
    let _lock = DataDirectory::lock(&options.data_dir)?;
    let store = match &options.database_url {
        Some(url) => Store::connect_postgres(url).await?,
        None => Store::open_sqlite(&options.data_dir.join(DATABASE_FILE)).await?,
    };
    let token = std::fs::read_to_string(&options.agent_token_file);
    let token = token.map_err(|source| ProgramError::Token {
        path: options.agent_token_file.clone(),
        source,
    })?;
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.map_err(|source| ProgramError::Listen {
        address: options.listen,
        source,
    })?;
    let settings = Settings {
        allowed_hosts: options.allowed_hosts,
        ..Settings::default()
    };
    let server = Server::builder()
        .settings(settings)
        .store(store)
        .host(HostEndpoint {
            name: "local".to_owned(),
            url: options.agent_url,
            token: token.trim().to_owned(),
        })
        .start(listener)
        .await?;
    if let Some(name) = options.create_key {
        let key = server.create_api_key(&name).await?;
        #[allow(clippy::print_stdout, reason = "the data that was asked for")]
        {
            println!("{}", key.secret);
        }
    } else {
        tracing::info!(address = %server.address(), "listening");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    }
    server.shut_down().await;
    Ok(())
}

/// A directory of a server, locked for as long as it runs. The kernel releases it however the
/// server ends.
#[derive(Debug)]
struct DataDirectory {
    _lock: File,
}

impl DataDirectory {
    fn lock(path: &Path) -> Result<Self, ProgramError> {
        let failed = |source| ProgramError::Directory {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(failed)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK_FILE))
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _lock: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ProgramError::Locked {
                path: path.to_owned(),
            }),
            Err(error) => Err(failed(error.into())),
        }
    }
}

/// The options as a table for the documentation.
#[must_use]
pub fn reference_table() -> String {
    let mut table = "| flag | variable | default | what |\n|---|---|---|---|\n".to_owned();
    for argument in Options::command().get_arguments() {
        let Some(variable) = argument.get_env() else {
            continue;
        };
        let defaults: Vec<String> = argument
            .get_default_values()
            .iter()
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect();
        let value = argument.get_value_names().unwrap_or_default();
        table.push_str(&format!(
            "| `--{} {}` | `{}` | {} | {} |\n",
            argument.get_long().unwrap_or_default(),
            value.first().map_or("", |name| name.as_str()),
            variable.to_string_lossy(),
            defaults.join(" "),
            argument
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default(),
        ));
    }
    table
}
