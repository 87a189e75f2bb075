//! `wrenn up`: a control plane in this process, and an agent beside it.
//!
//! ```text
//!  wrenn up ── lock ── agent: a child on this host, or a program in the machine
//!     │                  │ http://127.0.0.1:…, token
//!     └── server ────────┘   SQLite in the data directory, API on 127.0.0.1:7400
//! ```
//!
//! Both end with this process; sandboxes go on, and are there again at the next start. An
//! agent that outlived a killed `wrenn up` is adopted by the next one.

mod agent;
mod credentials;
mod daemon;
mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use wrenn_machine::MachineNetwork;
use wrenn_server::{Server, Settings, Store};

use crate::terminal::Hangup;
use crate::{GlobalArgs, output};
pub(crate) use agent::{stop_in_machine, stop_left_behind};
pub(crate) use state::DataDirectory;

use agent::{Agent, Place};
use state::Running;

/// Options of `wrenn up`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn up                            in this terminal, until Ctrl-C
  wrenn up --detach                   in the background; wrenn down ends it
  wrenn up --machine-network open     sandboxes in the machine reach the internet")]
pub struct Args {
    /// Leave server and agent running in the background.
    #[arg(long, short)]
    detach: bool,
    /// Address of the API.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "WRENN_LISTEN_ADDR",
        default_value = "127.0.0.1:7400"
    )]
    listen: SocketAddr,
    /// Host names, besides loopback, under which the server answers.
    #[arg(
        long,
        value_name = "NAMES",
        env = "WRENN_ALLOWED_HOSTS",
        value_delimiter = ','
    )]
    allowed_hosts: Vec<String>,
    /// Directory of the database and the logs; for root /var/lib/wrenn/server unless set.
    #[arg(long, value_name = "DIR", env = "WRENN_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address of the agent, where it runs on this host.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "AGENT_LISTEN_ADDR",
        default_value = "127.0.0.1:7410"
    )]
    agent_listen: SocketAddr,
    /// Whether sandboxes in the machine reach the internet: open or closed.
    #[arg(long, value_name = "NETWORK", default_value = "closed")]
    machine_network: MachineNetwork,
    /// Program that runs VMs: wrenn-vmm or firecracker.
    #[arg(long, value_name = "PATH", env = "WRENN_VMM")]
    vmm: Option<PathBuf>,
    /// Run sandboxes on this host even if it seems unable to, never in the machine.
    #[arg(long)]
    here: bool,
    /// Print what runs as JSON.
    #[arg(long)]
    json: bool,
    /// This is the process that `--detach` leaves behind.
    #[arg(long, hide = true)]
    daemon: bool,
}

/// Runs the sub-command.
///
/// # Errors
/// When the agent or the server does not start.
pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<ExitCode> {
    let directory = DataDirectory::open(args.data_dir.as_deref())?;
    if args.detach {
        let running = daemon::start(&args, global, &directory).await?;
        report(&running, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(_lock) = directory.lock()? else {
        let running = directory.running()?.ok_or_else(|| {
            anyhow!(
                "another server uses {}, or a wrenn up starts there at this moment; \
                 stop it first, or use another --data-dir",
                directory.path().display()
            )
        })?;
        drop_eprintln!(
            "wrenn: it runs already (process {}); wrenn down ends it",
            running.pid
        );
        report(&running, args.json)?;
        return Ok(ExitCode::SUCCESS);
    };
    // Listened for first: a signal that comes during the start ends it in order.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut hangup = Hangup::listen().context("cannot listen for signals")?;

    // The port first: nothing is started for a server that cannot listen.
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; another program has the port? --listen takes another one",
            args.listen
        )
    })?;
    let mut agent = tokio::select! {
        agent = Agent::start(global, &args, &directory) => agent?,
        _ = terminate.recv() => return Ok(interrupted()),
        _ = interrupt.recv() => return Ok(interrupted()),
        () = hangup.recv() => return Ok(interrupted()),
    };
    let served = serve(&args, &directory, &mut agent, listener, async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = hangup.recv() => {}
        }
    })
    .await;
    let stopped = agent.stop().await;
    served?;
    stopped?;
    Ok(ExitCode::SUCCESS)
}

fn interrupted() -> ExitCode {
    drop_eprintln!("wrenn: stopped before it was up");
    ExitCode::from(130)
}

async fn serve(
    args: &Args,
    directory: &DataDirectory,
    agent: &mut Agent,
    listener: TcpListener,
    until: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let store = Store::open_sqlite(&directory.database())
        .await
        .with_context(|| format!("cannot use {}", directory.database().display()))?;
    let mut settings = Settings::default();
    settings.mode = "local".to_owned();
    settings.allowed_hosts.clone_from(&args.allowed_hosts);
    let server = Server::builder()
        .settings(settings)
        .store(store)
        .host(agent.endpoint().clone())
        .start(listener)
        .await?;
    let key = credentials::ensure(&server).await?;
    let running = Running {
        pid: std::process::id(),
        url: format!("http://{}", server.address()),
        login_link: server.login_link(),
        sandboxes_run: match agent.place() {
            Place::Here => "on this host".to_owned(),
            Place::Machine => "in the machine".to_owned(),
        },
    };
    directory.write_running(&running)?;
    report(&running, args.json)?;
    credentials::report(&key, args.daemon);
    if !args.daemon {
        drop_eprintln!("Ctrl-C stops server and agent; sandboxes go on.");
    }
    tokio::select! {
        () = until => {}
        () = agent.supervise(args, &server) => {}
    }
    drop_eprintln!("wrenn: stopping; sandboxes go on");
    directory.forget_running();
    server.shut_down().await;
    Ok(())
}

fn report(running: &Running, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print(&format!("{}\n", serde_json::to_string_pretty(running)?));
    }
    output::print(&format!(
        "Wrenn runs at {}; sandboxes run {}.\n\
         \x20 test page   {}\n\
         \x20             (the link logs one browser in, once, within five minutes)\n\
         \x20 API docs    {}/docs\n\
         \x20 first steps wrenn sandbox create --rm -it\n",
        running.url, running.sandboxes_run, running.login_link, running.url
    ))
}
