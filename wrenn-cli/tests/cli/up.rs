//! `wrenn up` and the directory that it shares with `wrenn-server`.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};

use crate::wrenn::program;

#[test]
fn directory_of_another_server_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    // As wrenn-server holds it.
    let lock = File::create(directory.path().join("server.lock")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    for (command, words) in [
        ("up", "another server uses"),
        ("down", "another server uses"),
    ] {
        let ended = program(directory.path())
            .args([command, "--data-dir"])
            .arg(directory.path())
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(1), "{command}");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains(words), "{command}: {said}");
    }
    assert!(!directory.path().join("wrenn.db").exists());
}
