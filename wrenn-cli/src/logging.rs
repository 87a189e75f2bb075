//! Logging to standard error; quiet unless asked.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging: warnings by default, `-v` for progress, `-vv` for everything.
/// `WRENN_LOG` takes a filter as `tracing-subscriber` understands it and wins.
pub(crate) fn start(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "wrenn=info,wrenn_core=info,wrenn_machine=info,wrenn_images=info,warn",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("WRENN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // A second call, as tests make it, leaves the first subscriber in place.
    let _already = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Colour codes belong on a terminal, not into pipes and files.
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}
