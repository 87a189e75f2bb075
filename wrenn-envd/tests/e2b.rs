//! The existing client, unmodified, against the daemon on this host. See `e2b/README.md`.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
#![allow(
    clippy::disallowed_methods,
    reason = "a virtual environment is made by programs"
)]

use std::path::Path;
use std::process::Command;

/// Runs a program that must succeed and returns its standard output.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?} failed ({}):\n{text}{complaints}",
        output.status
    );
    text
}

#[test]
fn the_existing_client_works_unmodified() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root: the client's port is fixed, so the daemon gets a network \
         namespace of its own"
    );
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b");
    let python = run(&mut Command::new(suite.join("client.sh")));
    let text = run(Command::new(suite.join("native.sh"))
        .arg(env!("CARGO_BIN_EXE_wrenn-envd"))
        .arg("-v")
        .env("WRENN_SUITE_PYTHON", python.trim_end()));
    let summary = text
        .lines()
        .rfind(|line| line.contains(" passed, "))
        .unwrap_or_default();
    assert!(summary.contains(" passed, 0 failed, "), "{text}");
    assert!(!summary.starts_with("0 passed"), "{text}");
}
