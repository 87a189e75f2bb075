//! Where the configuration comes from, with the program itself; and its table in the docs.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::path::Path;
use std::process::{Command, Output};

fn show(directory: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wrenn-agent"))
        .current_dir(directory)
        .env_clear()
        .envs(variables.iter().copied())
        .arg("--show-config")
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn flags_go_before_the_environment_before_the_file_before_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let file = "AGENT_MAX_VCPUS=1\nAGENT_MAX_SANDBOXES=1\nAGENT_FILES_ROOTDIR=/of/file\n";
    std::fs::write(directory.path().join(".env"), file).unwrap();
    let variables = [("AGENT_MAX_VCPUS", "2"), ("AGENT_MAX_SANDBOXES", "2")];
    let output = show(
        directory.path(),
        &variables,
        &["--max-vcpus", "3", "--network-packets-per-second", "7"],
    );
    let shown = text(&output.stdout);
    for line in [
        "AGENT_MAX_VCPUS=3",
        "AGENT_MAX_SANDBOXES=2",
        "AGENT_FILES_ROOTDIR=/of/file",
        "AGENT_LISTEN_ADDR=127.0.0.1:7410",
        "AGENT_TOKEN_FILE=/of/file/agent-token",
        "AGENT_DISK_RESERVE_MIB=1024",
        "AGENT_DISK_MIB_PER_SECOND=256",
        "AGENT_DRIVE_MIB_PER_SECOND=0",
        "AGENT_NETWORK_PACKETS_PER_SECOND=7",
        "AGENT_BOOT_DEADLINE=1m",
    ] {
        assert!(shown.lines().any(|given| given == line), "{line}\n{shown}");
    }
}

#[test]
fn what_is_shown_is_what_a_file_may_hold() {
    let directory = tempfile::tempdir().unwrap();
    let mut arguments = vec!["--root", "/data", "--boot-deadline", "90s", "--vmm", "/vmm"];
    arguments.extend(["--allowed-host", "a.example", "--allowed-host", "b.example"]);
    let first = show(directory.path(), &[], &arguments);
    assert!(first.status.success(), "{}", text(&first.stderr));
    std::fs::write(directory.path().join(".env"), &first.stdout).unwrap();
    let again = show(directory.path(), &[], &[]);
    assert_eq!(text(&again.stdout), text(&first.stdout));
}

#[test]
fn a_mistake_is_one_line_and_nothing_is_started() {
    let directory = tempfile::tempdir().unwrap();
    let output = show(directory.path(), &[("AGENT_MAX_VCPUS", "0")], &[]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("leaves no room"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");

    std::fs::write(directory.path().join(".env"), "this is no variable\n").unwrap();
    let output = show(directory.path(), &[], &[]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("cannot use .env"), "{stderr}");
}

/// `WRENN_BLESS=1` writes the table instead.
#[test]
fn the_table_in_the_docs_is_that_of_the_program() {
    const BEGIN: &str = "<!-- written by the test of wrenn-agent/tests/config.rs -->\n";
    const END: &str = "<!-- until here -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/agent.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    let wanted = wrenn_agent::config::reference_table();
    if std::env::var_os("WRENN_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(
        table, wanted,
        "set WRENN_BLESS=1 and run the test again to write it"
    );
}
