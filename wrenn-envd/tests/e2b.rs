//! The existing client, unmodified, against the daemon on this host. See `e2b/README.md`.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
#![allow(
    clippy::disallowed_methods,
    reason = "a virtual environment is made by programs"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// The virtual environment for these requirements, made at the first run.
fn python(requirements: &Path) -> PathBuf {
    let digest = Sha256::digest(fs::read(requirements).unwrap());
    let name: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("e2b-{name}"));
    let python = directory.join("bin/python");
    if !directory.join("complete").exists() {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&directory));
        run(Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(requirements));
        fs::write(directory.join("complete"), "").unwrap();
    }
    python
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?} failed ({}):\n{text}",
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
    let python = match std::env::var_os("WRENN_SUITE_PYTHON") {
        Some(python) => python.into(),
        None => python(&suite.join("requirements.txt")),
    };
    let text = run(Command::new(suite.join("native.sh"))
        .arg(env!("CARGO_BIN_EXE_wrenn-envd"))
        .arg("-v")
        .env("WRENN_SUITE_PYTHON", python));
    let summary = text
        .lines()
        .rfind(|line| line.contains(" passed, "))
        .unwrap_or_default();
    assert!(summary.contains(" passed, 0 failed, "), "{text}");
    assert!(!summary.starts_with("0 passed"), "{text}");
}
