//! Decides which of its lives the program is in, and runs it. See the library.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use wrenn_envd::config::{Action, Config, USAGE};
use wrenn_envd::guest::{Guest, Settings};
use wrenn_envd::process::GracePeriods;
use wrenn_envd::server::Daemon;
use wrenn_envd::sys::signals::unblock_all;
use wrenn_envd::{PROTOCOL_VERSION, init, programs, state};

fn main() -> ExitCode {
    abort_on_panic();
    if std::process::id() == 1 {
        return init::run();
    }
    match Config::parse(std::env::args_os().skip(1)) {
        Ok(Action::Serve(config)) => serve(config),
        Ok(Action::PrintVersion) => {
            print(&format!(
                "wrenn-envd {} (protocol {PROTOCOL_VERSION})\n",
                env!("CARGO_PKG_VERSION")
            ));
            ExitCode::SUCCESS
        }
        Ok(Action::PrintUsage) => {
            print(USAGE);
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&error);
            eprint!("\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Ends the process at a panic of any thread, once it is told. The first process starts the
/// daemon again; if it is the first one itself, the guest ends and does not hang.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

fn serve(config: Config) -> ExitCode {
    if let Err(error) = unblock_all() {
        complain(&error);
        return ExitCode::FAILURE;
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    // A guest has few processors; more threads than two only cost memory.
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(32)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&error);
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let kept = config.state_file.as_deref().map_or(Ok(None), state::load);
        let settings = match kept {
            Ok(Some(settings)) => settings,
            Ok(None) => Settings {
                access_token: config.access_token,
                env: BTreeMap::new(),
                default_user: config.default_user,
                default_workdir: None,
            },
            Err(error) => {
                // Starting without the token would open the guest to everybody in it.
                complain(&CannotRestore(error));
                return ExitCode::FAILURE;
            }
        };
        let guest = Guest::new(settings, config.state_file, GracePeriods::default());
        let daemon = match Daemon::bind(config.listen, guest.clone()).await {
            Ok(daemon) => daemon,
            Err(error) => {
                complain(&CannotListen {
                    address: config.listen,
                    source: error,
                });
                return ExitCode::FAILURE;
            }
        };
        // The daemon before may have ended while they stood still.
        programs::thaw();
        let shutdown = guest.shutdown.clone();
        guest.tasks.spawn(async move {
            let (Ok(mut terminate), Ok(mut interrupt)) = (
                signal(SignalKind::terminate()),
                signal(SignalKind::interrupt()),
            ) else {
                return;
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            shutdown.cancel();
        });
        daemon.serve().await;
        ExitCode::SUCCESS
    })
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
struct CannotListen {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read the settings of the daemon before")]
struct CannotRestore(#[source] std::io::Error);

/// One line on standard error with the whole chain of causes.
fn complain(error: &dyn std::error::Error) {
    let mut text = format!("wrenn-envd: {error}");
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    eprintln!("{text}");
}

#[allow(clippy::print_stdout, reason = "the answer to --version and --help")]
fn print(text: &str) {
    print!("{text}");
}
