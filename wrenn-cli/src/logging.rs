//! Logging to standard error; quiet unless asked.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// A filter as `tracing-subscriber` understands it.
const FILTER: &str = "WRENN_LOG";
/// Asks programs for text without colours, by <https://no-color.org>.
const NO_COLOUR: &str = "NO_COLOR";

/// Starts logging: warnings by default, `-v` for progress, `-vv` for everything.
/// `WRENN_LOG` takes a filter as `tracing-subscriber` understands it and wins.
pub(crate) fn start(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "wrenn=info,wrenn_core=info,wrenn_machine=info,wrenn_images=info,warn",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(default));
    // A second call, as tests make it, leaves the first subscriber in place.
    let _already = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Colour codes belong on a terminal, not into pipes and files.
        .with_ansi(std::io::stderr().is_terminal() && !colour_is_refused())
        .with_writer(std::io::stderr)
        // It would tell of a failed print by another one, which panics.
        .log_internal_errors(false)
        .try_init();
}

fn colour_is_refused() -> bool {
    std::env::var_os(NO_COLOUR).is_some_and(|value| !value.is_empty())
}

/// Variables with which this program logs elsewhere as it does here. There its standard error may
/// be a terminal, which ends in a pipe of ours.
#[cfg(feature = "host")]
pub(crate) fn environment_elsewhere() -> Vec<(&'static str, String)> {
    let mut environment = Vec::new();
    environment.extend(std::env::var(FILTER).ok().map(|filter| (FILTER, filter)));
    let is_shown = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    if !is_shown || colour_is_refused() {
        environment.push((NO_COLOUR, "1".to_owned()));
    }
    environment
}
