//! The description of the API against the API: schemathesis, from PyPI, sends requests that
//! [`openapi.yaml`](../openapi.yaml) allows and such that it does not, from a fixed seed. No
//! answer is a 5xx, and each has a status, headers and a body that the description has.
//!
//! `tests/schemathesis/` holds its exact version, and what it has to know besides. It skips what
//! does not end: WebSockets and streams of events.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test is a program of another language"
)]

mod program;

use std::path::Path;
use std::process::Command;

use program::ServerProcess;

const SEED: &str = "20261129";
/// Of each operation, beside those of the phase that walks all parameters.
const MAX_EXAMPLES: &str = "25";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance";
const ENDLESS: &str = "/stream$|/watch$|/events$";

#[tokio::test(flavor = "multi_thread")]
async fn answers_match_their_description() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis");
    let installed = Command::new(directory.join("install.sh")).output().unwrap();
    assert!(
        installed.status.success(),
        "schemathesis cannot be installed: {}",
        String::from_utf8_lossy(&installed.stderr)
    );
    let programs = String::from_utf8(installed.stdout).unwrap();
    let server = ServerProcess::start("info").await;
    let sandboxes = server.sdk().sandboxes();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let sandbox = sandboxes.create("base").await.unwrap();
        ids.push(sandbox.id().to_string());
    }
    let working = tempfile::tempdir().unwrap();
    let mut command = Command::new(Path::new(programs.trim_end()).join("schemathesis"));
    command
        .arg("--config-file")
        .arg(directory.join("schemathesis.toml"))
        .arg("run")
        .arg(format!("http://{}/openapi.json", server.address))
        .arg(format!("--header=X-API-Key: {}", server.api_key))
        .args(["--seed", SEED, "--max-examples", MAX_EXAMPLES])
        .args(["--phases", "coverage,fuzzing", "--checks", CHECKS])
        .args(["--exclude-path-regex", ENDLESS, "--request-timeout", "30"])
        .args(["--continue-on-failure", "--no-shrink", "--no-color"])
        .args(["--generation-database", "none"])
        // It keeps a cache where it runs.
        .current_dir(working.path())
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", &directory)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("WRENN_SUITE_SUBJECT", &ids[0])
        .env("WRENN_SUITE_PAUSED", &ids[1])
        .env("WRENN_SUITE_DOOMED", &ids[2]);
    let ran = tokio::task::spawn_blocking(move || command.output());
    let ran = ran.await.unwrap().unwrap();
    let report = String::from_utf8_lossy(&ran.stdout);
    let complaints = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{report}{complaints}");
    let log = server.log();
    let errors: Vec<_> = log
        .lines()
        .filter(|line| line.contains(" ERROR "))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let generated = report.lines().find(|line| line.contains(" generated,"));
    assert!(generated.is_some(), "{report}");
    eprintln!("{}", generated.unwrap_or_default().trim());
}
