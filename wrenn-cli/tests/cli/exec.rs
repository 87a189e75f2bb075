//! Commands: streams, signals, exit codes.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use crate::wrenn::{Wrenn, run, run_with_input};

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_the_command_s() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    for (command, code) in [
        (&["sh", "-c", "exit 3"][..], 3),
        (&["sh", "-c", "kill -15 $$"], 143),
        (&["/no/such/program"], 127),
        (&["/etc/passwd"], 126),
    ] {
        let words = [&["sandbox", "exec", "web", "--"], command].concat();
        let ran = wrenn.run(&words).await;
        assert_eq!(ran.code, Some(code), "{ran:?}");
    }
    let words = [
        "sandbox",
        "exec",
        "--timeout",
        "1s",
        "web",
        "--",
        "sleep",
        "60",
    ];
    let ran = wrenn.run(&words).await;
    assert_eq!(ran.code, Some(124), "{ran:?}");
    assert_eq!(ran.stderr, "wrenn: the command was ended after 1s\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_kept_apart_and_whole() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let words = [
        "sandbox",
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2",
    ];
    let ran = wrenn.run(&words).await;
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("out\n", "err\n")
    );
    let input: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let words = ["sandbox", "exec", "-i", "web", "--", "sha256sum"];
    let ran = run_with_input(wrenn.command(&words), &input).await;
    let mut local = std::process::Command::new("sha256sum");
    local.stdin(Stdio::piped());
    assert_eq!(ran.stdout, run_with_input(local, &input).await.stdout);
    // Without -i the command reads nothing.
    let words = ["sandbox", "exec", "web", "--", "wc", "-c"];
    let ran = run_with_input(wrenn.command(&words), b"input").await;
    assert_eq!(ran.stdout, "0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_directory_and_user_are_given() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let words = [
        "sandbox",
        "exec",
        "-e",
        "MINE",
        "-e",
        "OTHER=x y",
        "-w",
        "/tmp",
        "web",
        "--",
        "sh",
        "-c",
        "echo $MINE, $OTHER, $(pwd)",
    ];
    let mut command = wrenn.command(&words);
    command.env("MINE", "from here");
    assert_eq!(run(command).await.stdout, "from here, x y, /tmp\n");
    let unset = wrenn.run(&words).await;
    assert_eq!(unset.code, Some(2));
    assert!(unset.stderr.contains("MINE is not set here"), "{unset:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn detached_command_goes_on_and_is_killed_by_tag() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let words = [
        "sandbox", "exec", "-d", "--tag", "nap", "web", "--", "sleep", "60",
    ];
    let pid = wrenn.ok(&words).await;
    assert_eq!(wrenn.ok(&["sandbox", "ps", "web", "-q"]).await, pid);
    wrenn.ok(&["sandbox", "kill", "web", "nap"]).await;
    while !wrenn.ok(&["sandbox", "ps", "web", "-q"]).await.is_empty() {}
    let words = ["sandbox", "kill", "web", "nap", "--signal", "KILL"];
    let gone = wrenn.run(&words).await;
    assert_eq!(gone.code, Some(1), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupts_are_forwarded_and_second_one_leaves() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    for (trap, interrupts, code) in [("exit 7", 1, 7), (":", 2, 130)] {
        let script = format!("trap '{trap}' INT; echo ready; while :; do sleep 0.1; done");
        let mut command = wrenn.command(&["sandbox", "exec", "web", "--", "sh", "-c", &script]);
        command.stdout(Stdio::piped());
        let code_of = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let mut stdout = BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
            for _ in 0..interrupts {
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
            stdout.read_to_string(&mut line).unwrap();
            child.wait().unwrap().code()
        });
        assert_eq!(code_of.await.unwrap(), Some(code));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_leaves_ends_the_command() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let mut command = wrenn.command(&["sandbox", "exec", "web", "--", "yes"]);
    command.stdout(Stdio::piped());
    let code = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut first = [0; 2];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        child.wait().unwrap().code()
    });
    assert_eq!(code.await.unwrap(), Some(141));
    assert_eq!(wrenn.ok(&["sandbox", "ps", "web", "-q"]).await, "");
}
