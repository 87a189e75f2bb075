//! Dying at a named point, for tests of what is left then.
//!
//! A program whose environment says `WRENN_CRASH_AT=<name>` kills itself as soon as it comes
//! to the point of this name, as it would be killed from outside: nothing is given back. Names
//! are in the order in which a life passes them.

use std::sync::OnceLock;

use nix::sys::signal::{Signal, raise};

const VARIABLE: &str = "WRENN_CRASH_AT";

/// Every point there is.
pub const POINTS: [&str; 15] = [
    "pause.frozen",
    "pause.stopped",
    "pause.written",
    "pause.taken",
    "pause.published",
    "pause.recorded",
    "pause.ended",
    "resume.prepared",
    "resume.served",
    "resume.loaded",
    "resume.greeted",
    "resume.recorded",
    "snapshot.continued",
    "snapshot.published",
    "snapshot.named",
];

/// Ends the program here, if this is where it is to end.
pub(crate) fn point(name: &'static str) {
    static WANTED: OnceLock<Option<String>> = OnceLock::new();

    debug_assert!(POINTS.contains(&name), "{name} is not in the list");
    let wanted = WANTED.get_or_init(|| std::env::var(VARIABLE).ok());
    if wanted.as_deref() == Some(name) {
        tracing::warn!(name, "ends here, as {VARIABLE} wants");
        if let Err(error) = raise(Signal::SIGKILL) {
            tracing::error!(%error, "it goes on");
        }
    }
}
