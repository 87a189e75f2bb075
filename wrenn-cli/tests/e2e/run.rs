//! `wrenn run`, as a person or a script uses it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::io::{FdFlags, fcntl_setfd};
use sha2::{Digest, Sha256};

use crate::stage::{self, MINIMAL};

/// `wrenn run` in a small sandbox, with these options and this command.
fn wrenn_run(options: &[&str], command: &[&str]) -> Command {
    let mut run = Command::new(stage::wrenn());
    run.arg("--root").arg(stage::root().path());
    run.args(["run", "--here"]);
    for (option, value) in [("--template", MINIMAL), ("--memory", "128M")] {
        if !options.contains(&option) {
            run.args([option, value]);
        }
    }
    if let Some(vmm) = stage::vmm().filter(|_| !options.contains(&"--vmm")) {
        run.arg("--vmm").arg(vmm);
    }
    run.args(options).arg("--").args(command);
    run.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    run
}

fn output(options: &[&str], command: &[&str]) -> Output {
    wrenn_run(options, command).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads from `stream` until what was read contains `wanted`.
fn read_until(stream: &mut impl Read, wanted: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !text(&seen).contains(wanted) {
        assert_ne!(
            stream.read(&mut byte).unwrap(),
            0,
            "it ended before '{wanted}': {}",
            text(&seen)
        );
        seen.push(byte[0]);
    }
    text(&seen)
}

/// Our terminal's.
const SIZE: Winsize = Winsize {
    ws_row: 37,
    ws_col: 101,
    ws_xpixel: 0,
    ws_ypixel: 0,
};

/// Starts a program at a terminal, and gives the terminal's other end.
fn spawn_at_terminal(mut run: Command) -> (Child, File) {
    let pty = openpty(Some(&SIZE), None).unwrap();
    // A program that had the other end itself would never see it closed.
    for end in [&pty.master, &pty.slave] {
        fcntl_setfd(end, FdFlags::CLOEXEC).unwrap();
    }
    let ours = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    run.stdin(ours(&pty.slave))
        .stdout(ours(&pty.slave))
        .stderr(ours(&pty.slave));
    (run.spawn().unwrap(), File::from(pty.master))
}

/// The same program in a session of its own, which gets a SIGHUP when its terminal is closed.
fn in_session(run: &Command) -> Command {
    let mut session = Command::new("setsid");
    session
        // The long name is not busybox's.
        .arg("-c")
        .arg(run.get_program())
        .args(run.get_args());
    session
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

#[test]
fn streams_stay_apart_and_the_exit_code_is_the_commands() {
    stage::enter(|_| async {
        let output = output(&[], &["sh", "-c", "echo out; echo err >&2; exit 3"]);
        assert_eq!(text(&output.stdout), "out\n");
        assert_eq!(text(&output.stderr), "err\n");
        assert_eq!(output.status.code(), Some(3));
    });
}

#[test]
fn environment_directory_and_user_are_as_asked() {
    stage::enter(|_| async {
        let options = [
            "--env",
            "GREETING=hello world",
            "--cwd",
            "/tmp",
            "--user",
            "root",
        ];
        let output = output(
            &options,
            &["sh", "-c", "echo \"$GREETING\"; pwd; id -un; hostname"],
        );
        let stdout = text(&output.stdout);
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!(
            lines[..3],
            ["hello world", "/tmp", "root"],
            "{stdout}{}",
            text(&output.stderr)
        );
        assert!(
            lines[3].starts_with("sb") && lines[3].len() == 22,
            "{stdout}"
        );
    });
}

#[test]
fn standard_input_arrives_whole() {
    stage::enter(|_| async {
        let mut bytes = vec![0_u8; 24 << 20];
        rand::fill(&mut bytes[..]);
        let wanted = hex(&bytes);
        let mut child = wrenn_run(&["-i"], &["sha256sum"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert_eq!(
            text(&output.stdout).split(' ').next(),
            Some(wanted.as_str()),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn output_survives_a_slow_reader() {
    stage::enter(|_| async {
        let script = "dd if=/dev/urandom of=/tmp/x bs=1M count=16 2>/dev/null; \
                      sha256sum /tmp/x >&2; cat /tmp/x";
        let mut child = wrenn_run(&[], &["sh", "-c", script]).spawn().unwrap();
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        // The sum comes first, and nothing of the output is read until it has come: by
        // then every buffer on the way is full and the command waits.
        let sum = read_until(&mut stderr, "/tmp/x\n");
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 16 << 20);
        assert_eq!(sum.split(' ').next(), Some(hex(&bytes).as_str()));
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn a_reader_that_leaves_ends_the_command() {
    stage::enter(|_| async {
        let mut child = wrenn_run(&[], &["yes"]).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        read_until(&mut stdout, "y\ny\n");
        drop(stdout);
        assert_eq!(child.wait().unwrap().code(), Some(141));
    });
}

#[test]
fn an_interrupt_reaches_the_command() {
    stage::enter(|_| async {
        let script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 1; done";
        let mut child = wrenn_run(&[], &["sh", "-c", script]).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        read_until(&mut stdout, "ready\n");
        signal(&child, Signal::SIGINT);
        read_until(&mut stdout, "caught\n");
        assert_eq!(child.wait().unwrap().code(), Some(5));
    });
}

#[test]
fn a_command_that_dies_by_a_signal_gives_the_shells_code() {
    stage::enter(|_| async {
        let output = output(&[], &["sh", "-c", "kill -9 $$"]);
        assert_eq!(output.status.code(), Some(137), "{}", text(&output.stderr));
    });
}

#[test]
fn a_time_out_ends_the_command_and_its_children() {
    stage::enter(|_| async {
        let output = output(
            &["--timeout", "3s"],
            &["sh", "-c", "sleep 1000 & sleep 1000"],
        );
        assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
        assert!(
            text(&output.stderr).contains("ended after 3s"),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn a_terminal_has_our_size_and_keys_reach_it() {
    stage::enter(|_| async {
        let run = wrenn_run(&["-t"], &["sh"]);
        let (mut child, mut terminal) = spawn_at_terminal(run);
        read_until(&mut terminal, "$ ");
        terminal.write_all(b"stty size\r").unwrap();
        read_until(&mut terminal, "37 101");
        // Ctrl-C ends the command in the foreground and not the shell. It is the command
        // itself that says that it is there: while the shell edits its line or begins a
        // command, Ctrl-C is a key like others.
        terminal
            .write_all(b"sh -c 'echo run-$((1 + 1)); exec sleep 1000'\r")
            .unwrap();
        read_until(&mut terminal, "run-2");
        terminal.write_all(b"\x03").unwrap();
        terminal.write_all(b"echo still-$((40 + 2))\r").unwrap();
        read_until(&mut terminal, "still-42");
        terminal.write_all(b"exit 9\r").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9));
    });
}

#[test]
fn bad_input_is_one_clear_sentence_and_leaves_nothing() {
    stage::enter(|_| async {
        let cases: [(&[&str], i32, &str); 6] = [
            (
                &["--template", "no-such"],
                1,
                "there is no template 'no-such'",
            ),
            (&["--vcpus", "0"], 2, "0 vCPUs cannot be had"),
            (&["--vcpus", "4000"], 2, "ask for 1 to 32"),
            (&["--memory", "1M"], 2, "1 MiB of memory cannot be had"),
            (&["--memory", "900G"], 1, "are free on this host"),
            (&["--vmm", "/etc/passwd"], 1, "is no program"),
        ];
        for (options, code, sentence) in cases {
            let output = output(options, &["true"]);
            let stderr = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{options:?}: {stderr}");
            assert!(stderr.contains(sentence), "{options:?}: {stderr}");
            assert_eq!(stderr.trim().lines().count(), 1, "{options:?}: {stderr}");
        }
        let output = output(&[], &["no-such-program"]);
        assert_ne!(output.status.code(), Some(0));
        assert!(
            text(&output.stderr).contains("no-such-program"),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn a_vmm_that_dies_is_reported_at_once() {
    stage::enter(|host| async move {
        let mut child = wrenn_run(&[], &["sh", "-c", "echo ready; sleep 1000"])
            .spawn()
            .unwrap();
        read_until(child.stdout.as_mut().unwrap(), "ready\n");
        let vmm = stage::leftovers(&host).await.processes;
        assert_eq!(vmm.len(), 1);
        kill(Pid::from_raw(vmm[0].cast_signed()), Signal::SIGKILL).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains("signal 9"),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn closed_terminal_ends_sandbox() {
    stage::enter(|_| async {
        // Without a session the program gets no signal, and only its terminal tells.
        for has_session in [true, false] {
            let run = wrenn_run(&["-it"], &["sh"]);
            let run = if has_session { in_session(&run) } else { run };
            let (mut child, mut terminal) = spawn_at_terminal(run);
            read_until(&mut terminal, "$ ");
            drop(terminal);
            let status = child.wait().unwrap();
            assert!(status.code().is_some(), "{status}");
        }
        // The stage asserts that nothing is left.
    });
}

#[test]
fn output_to_closed_terminal_ends_sandbox() {
    stage::enter(|_| async {
        let (mut child, mut terminal) = spawn_at_terminal(wrenn_run(&[], &["yes"]));
        read_until(&mut terminal, "y\r\n");
        drop(terminal);
        assert_eq!(child.wait().unwrap().code(), Some(141));
    });
}

#[test]
fn terminated_run_destroys_its_sandbox() {
    stage::enter(|host| async move {
        // A guest's command that ignores both signals is left after a while.
        let ignoring = "trap '' TERM HUP; echo ready; while :; do sleep 1; done";
        for script in ["echo ready; exec sleep 1000", ignoring] {
            let mut child = wrenn_run(&[], &["sh", "-c", script]).spawn().unwrap();
            read_until(child.stdout.as_mut().unwrap(), "ready\n");
            // The daemon of a machine sends both when its client is gone.
            signal(&child, Signal::SIGTERM);
            signal(&child, Signal::SIGHUP);
            let code = child.wait().unwrap().code();
            assert!(matches!(code, Some(129 | 143)), "{script}: {code:?}");
            assert!(stage::leftovers(&host).await.is_empty(), "{script}");
        }
    });
}

#[test]
fn hangup_during_creation_leaves_nothing() {
    stage::enter(|host| async move {
        let mut child = wrenn_run(&[], &["sleep", "1000"]).spawn().unwrap();
        let begun = || async { !stage::leftovers(&host).await.processes.is_empty() };
        stage::until("its VM is there", begun).await;
        signal(&child, Signal::SIGHUP);
        assert_eq!(child.wait().unwrap().code(), Some(129));
    });
}

#[test]
fn vm_of_killed_run_dies_with_it() {
    stage::enter(|host| async move {
        let mut child = wrenn_run(&[], &["sh", "-c", "echo ready; sleep 1000"])
            .spawn()
            .unwrap();
        read_until(child.stdout.as_mut().unwrap(), "ready\n");
        child.kill().unwrap();
        child.wait().unwrap();
        let is_dead = || async { stage::leftovers(&host).await.processes.is_empty() };
        stage::until("its VM is dead", is_dead).await;
        // The rest is swept by the next program.
        let left = stage::leftovers(&host).await;
        assert!(
            !left.files.is_empty() && !left.network.is_empty(),
            "{left:#?}"
        );

        let next = output(&[], &["true"]);
        assert!(next.status.success(), "{}", text(&next.stderr));
        // The stage asserts that nothing is left.
    });
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
