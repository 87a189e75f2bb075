//! A terminal that is closed, and programs that are told to end.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::terminal::{AtTerminal, in_session};
use crate::wrenn::{Wrenn, program, run};

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts a program at a terminal and waits until it has shown `text`.
async fn shown_at_terminal(command: Command, text: &'static str) -> AtTerminal {
    let started = tokio::task::spawn_blocking(move || {
        let mut program = AtTerminal::start(command);
        program.read_past(text);
        program
    });
    started.await.unwrap()
}

/// The exit code of a program whose terminal is closed. A signal has none.
async fn code_after_close(program: AtTerminal) -> Option<i32> {
    let closed = tokio::task::spawn_blocking(|| program.close());
    closed.await.unwrap().code()
}

/// Polls until `words` print nothing.
async fn until_silent(wrenn: &Wrenn, words: &[&str]) {
    let silent = async {
        while !wrenn.ok(words).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let silent = tokio::time::timeout(PATIENCE, silent).await;
    assert!(silent.is_ok(), "{words:?} went on to print");
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_terminal_ends_shell_and_client() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let words = ["sandbox", "exec", "-it", "web", "--", "sh", "-i"];
    for has_session in [true, false] {
        let command = wrenn.command(&words);
        let command = if has_session {
            in_session(&command)
        } else {
            command
        };
        let program = shown_at_terminal(command, "$ ").await;
        assert!(code_after_close(program).await.is_some(), "{has_session}");
        until_silent(&wrenn, &["sandbox", "ps", "-q", "web"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_terminal_destroys_throwaway_sandbox() {
    let wrenn = Wrenn::start().await;
    for has_session in [true, false] {
        let command = wrenn.command(&["sandbox", "create", "--rm", "-it", "--", "sh", "-i"]);
        let command = if has_session {
            in_session(&command)
        } else {
            command
        };
        let program = shown_at_terminal(command, "$ ").await;
        assert!(code_after_close(program).await.is_some(), "{has_session}");
        assert_eq!(wrenn.ok(&["sandbox", "list", "-q"]).await, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_to_closed_terminal_ends_command() {
    let wrenn = Wrenn::start().await;
    // Input is none of the terminal's, and without a session no signal comes.
    let words = [
        "sandbox",
        "create",
        "--rm",
        "--",
        "sh",
        "-c",
        "while echo y; do sleep 0.1; done",
    ];
    let program = shown_at_terminal(wrenn.command(&words), "y\r\ny").await;
    assert_eq!(code_after_close(program).await, Some(141));
    assert_eq!(wrenn.ok(&["sandbox", "list", "-q"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_at_closed_terminal_are_dropped() {
    let wrenn = Wrenn::start().await;
    wrenn.create("first").await;
    for words in [
        &["sandbox", "list", "--watch"][..],
        &["-vv", "sandbox", "list", "--watch"],
    ] {
        let program = shown_at_terminal(wrenn.command(words), "first").await;
        let closed = tokio::task::spawn_blocking(|| program.close());
        // The change must be shown, at a terminal that is closed.
        wrenn.create("second").await;
        let status = closed.await.unwrap();
        assert_eq!(status.code(), Some(0), "{words:?}: {status}");
        wrenn.ok(&["sandbox", "destroy", "second"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn terminate_ends_interactive_shell() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let command = wrenn.command(&["sandbox", "exec", "-it", "web", "--", "sh", "-i"]);
    let program = shown_at_terminal(command, "$ ").await;
    kill(program.pid(), Signal::SIGTERM).unwrap();
    let finished = tokio::task::spawn_blocking(|| program.finish());
    let (shown, code) = finished.await.unwrap();
    // The shell's own end, which is not waited for in vain.
    assert!(!shown.contains("left the command"), "{shown}");
    assert!([129, 143].contains(&code), "{code}: {shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_ignores_terminate_is_left() {
    let wrenn = Wrenn::start().await;
    let script = "trap '' TERM HUP; echo ready; while :; do sleep 1; done";
    let mut command = wrenn.command(&["sandbox", "create", "--rm", "--", "sh", "-c", script]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // That the command is left is said to no reader.
    drop(child.stderr.take());
    let code = tokio::task::spawn_blocking(move || {
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGHUP).unwrap();
        child.wait().unwrap().code()
    });
    assert_eq!(code.await.unwrap(), Some(129));
    assert_eq!(wrenn.ok(&["sandbox", "list", "-q"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminate_is_heard_while_output_waits() {
    let wrenn = Wrenn::start().await;
    let script = "trap '' TERM; head -c 4000000 /dev/zero; sleep 1000";
    let mut command = wrenn.command(&["sandbox", "create", "--rm", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let code = tokio::task::spawn_blocking(move || {
        let mut first = [0];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut first)
            .unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        // The second one leaves a command that does not end.
        let ended = loop {
            kill(pid, Signal::SIGTERM).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
        };
        ended.code()
    });
    assert_eq!(code.await.unwrap(), Some(143));
}

#[tokio::test(flavor = "multi_thread")]
async fn ignored_hangup_does_not_end_command() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let command = wrenn.command(&[
        "sandbox",
        "exec",
        "-i",
        "web",
        "--",
        "sh",
        "-c",
        "echo ready; read x; echo $x",
    ]);
    let mut ignoring = wrenn.shell_command("sh");
    ignoring
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = ignoring.spawn().unwrap();
    let output = tokio::task::spawn_blocking(move || {
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGHUP).unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"on\n").unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"on\n"[..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_is_refused_without_our_own() {
    let directory = tempfile::tempdir().unwrap();
    for words in [
        &["sandbox", "exec", "-it", "web", "--", "sh"][..],
        &["sandbox", "create", "--rm", "-it"],
        #[cfg(feature = "host")]
        &["run", "-it", "--", "sh"],
        #[cfg(feature = "host")]
        &["machine", "exec", "-t", "--", "sh"],
    ] {
        let mut command = program(directory.path());
        command
            .args(words)
            .env("WRENN_API_URL", "http://127.0.0.1:9")
            .env("WRENN_API_KEY", "key");
        let ran = run(command).await;
        assert_eq!(ran.code, Some(2), "{words:?}: {ran:?}");
        assert!(
            ran.stderr.contains("-t needs a terminal"),
            "{words:?}: {ran:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_bar_survives_closed_terminal() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let file = std::fs::File::create(wrenn.path("large")).unwrap();
    file.set_len(256 << 20).unwrap();
    let command = wrenn.command(&["sandbox", "cp", "large", "web:large"]);
    let program = shown_at_terminal(command, "MiB").await;
    assert_eq!(code_after_close(program).await, Some(0));
    assert_eq!(wrenn.shell("wc -c < large").await.trim(), "268435456");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_at_dead_terminal_end_by_themselves() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    for words in [
        &["--help"][..],
        &["completions", "bash"],
        &["no-such-command"],
        &["sandbox", "list"],
        &["-vv", "sandbox", "list", "--json"],
        &["sandbox", "get", "no-such-sandbox"],
        &["sandbox", "exec", "web", "--", "no-such-program"],
        &["sandbox", "exec", "-it", "web", "--", "sh"],
        &["sandbox", "create", "--rm", "--", "echo", "x"],
        #[cfg(feature = "host")]
        &["machine", "status"],
    ] {
        let pty = openpty(None, None).unwrap();
        drop(pty.master);
        let ours = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = wrenn.command(words);
        command.stdin(ours()).stdout(ours()).stderr(ours());
        let ended = tokio::task::spawn_blocking(move || command.status().unwrap());
        let status = ended.await.unwrap();
        assert!(status.code().is_some(), "{words:?}: {status}");
    }
    let left = wrenn.ok(&["sandbox", "list", "-q"]).await;
    assert_eq!(left.lines().count(), 1, "{left}");
}
