//! The agent: the daemon on a host that owns its sandboxes.
//!
//! ```text
//!  control plane ─┐  Connect RPC, HTTP/1.1 or HTTP/2
//!  wrenn agent ───┴─▶ server ──▶ Fleet (wrenn-core) ──▶ Sandbox ──▶ VM, slot, disk
//!                       │  └───▶ GuestClient ──────────────────────▶ envd in the guest
//!  Prometheus ────────▶ metrics
//! ```
//!
//! It is thin: what a sandbox is and how it lives stands in wrenn-core. Here are the RPCs,
//! their bounds and their errors. It knows no database and no team.
//!
//! In reading order: [`config`] is what it is told; [`agent`] starts and stops; [`access`] says
//! who may call; `server` answers, with one file for each group of RPCs; `errors` is the only place that
//! turns an engine's error into an answer.

pub mod access;
pub mod agent;
pub mod config;
mod descriptors;
mod errors;
mod generated;
mod kvm;
mod lock;
mod logging;
mod metrics;
mod server;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use wrenn_core::Chain;

use agent::Agent;
use config::{Action, Config};

/// Runs the program with the given arguments, the program's name first.
///
/// To be called before any thread is started, since it may set environment variables.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if let Err(error) = wrenn_nss::use_files_and_dns() {
        return fail(&error);
    }
    let config = match Config::load(arguments) {
        Ok(Action::Run(config)) => *config,
        Ok(Action::Show(config)) => {
            #[allow(clippy::print_stdout, reason = "the data that was asked for")]
            {
                println!("{config}");
            }
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            error.print();
            return ExitCode::from(error.exit_code());
        }
    };
    logging::start(&config);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Runs an agent until SIGTERM or SIGINT.
async fn run(config: Config) -> Result<(), agent::StartError> {
    // Listened for first: a signal that comes while sandboxes are taken over stops the
    // agent once they are, and not in the middle.
    let signals = signal(SignalKind::terminate()).and_then(|terminate| {
        signal(SignalKind::interrupt()).map(|interrupt| (terminate, interrupt))
    });
    let (mut terminate, mut interrupt) = signals.map_err(agent::StartError::Signals)?;
    let agent = Agent::start(config).await?;
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: leaving; sandboxes keep running"),
        _ = interrupt.recv() => info!("SIGINT: leaving; sandboxes keep running"),
    }
    agent.stop().await;
    Ok(())
}

fn fail(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("wrenn-agent: {}", Chain(error));
    ExitCode::FAILURE
}
