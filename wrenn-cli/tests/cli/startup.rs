//! The time before a command runs: arguments first, then logging, then all else.

use std::process::Command;

use crate::wrenn::{Wrenn, program, run};

/// The program with so few descriptors that no runtime starts.
fn with_few_descriptors(command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n 4; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().unwrap())
        .env_clear();
    for (name, value) in command.get_envs() {
        limited.env(name, value.unwrap());
    }
    limited
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_are_read_before_runtime_starts() {
    let directory = tempfile::tempdir().unwrap();
    for (words, code) in [
        (&["--version"][..], 0),
        (&["sandbox", "exec", "--help"], 0),
        (&["sandbox", "creat"], 2),
        // This one needs a runtime.
        (&["sandbox", "list"], 1),
    ] {
        let mut command = program(directory.path());
        command.args(words);
        let ran = run(with_few_descriptors(&command)).await;
        assert_eq!(ran.code, Some(code), "{words:?}: {ran:?}");
        let needs_runtime = ran.stderr.contains("cannot start worker threads");
        assert_eq!(needs_runtime, code == 1, "{words:?}: {ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_in_pipes_have_no_colours() {
    let wrenn = Wrenn::start().await;
    let quiet = wrenn.run(&["sandbox", "list"]).await;
    assert_eq!(quiet.stderr, "");
    let ran = wrenn.run(&["-vv", "sandbox", "list"]).await;
    assert!(ran.stderr.contains("DEBUG"), "{ran:?}");
    assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
    assert_eq!(ran.stdout, quiet.stdout);
}
