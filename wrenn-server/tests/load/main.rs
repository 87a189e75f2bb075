//! Large transfers and many clients, through the program `wrenn-server` in a process of its own:
//! its memory stays what it was.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `WRENN_LOAD_FILE_MIB` | 64 | size of the file that goes up and down |
//! | `WRENN_LOAD_ARCHIVE_MIB` | 64 | size of the directory that goes up and down as an archive |
//! | `WRENN_LOAD_OUTPUT_MIB` | 32 | output of the command whose connection is cut |
//! | `WRENN_LOAD_SILENT` | 500 | connections that send nothing |
//! | `WRENN_LOAD_DRIBBLING` | 200 | connections whose headers come a byte at a time |
//! | `WRENN_LOAD_READERS` | 50 | WebSockets that do not read what their command prints |

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

#[path = "../program/mod.rs"]
mod program;

mod clients;
mod output;
mod pattern;
mod transfers;

/// A scale parameter, from its variable.
fn parameter(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is '{text}' and no number")),
        Err(_) => default,
    }
}

/// By how much the memory of the server may grow, in MiB.
const MAX_GROWTH_MIB: f64 = 32.0;

/// Asserts that the server's memory has not grown by more than it may since it was `before`.
fn assert_bounded(server: &program::ServerProcess, before: program::Memory, load: &str) {
    let after = server.memory();
    let growth = after.peak - before.resident;
    eprintln!(
        "{load}: resident {:.1} MiB before, {:.1} after, at most {:.1}: grew by {growth:.1}",
        before.resident, after.resident, after.peak
    );
    assert!(
        growth < MAX_GROWTH_MIB,
        "{load}: the server grew by {growth:.1} MiB"
    );
}
