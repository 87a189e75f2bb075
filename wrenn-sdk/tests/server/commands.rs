//! Commands, their streams, and links that break.

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use wrenn_sdk::{NO_ARGS, Process, ProcessEvent, Signal, TerminalSize};
use wrenn_testing::TestServer;

use crate::linked::Linked;

/// All output and the exit code.
async fn collect(process: &mut Process) -> (Vec<u8>, i32) {
    let mut output = Vec::new();
    loop {
        match process.next().await.unwrap().unwrap() {
            ProcessEvent::Stdout(bytes) | ProcessEvent::Tty(bytes) => output.extend(bytes),
            ProcessEvent::Stderr(bytes) => panic!("{bytes:?}"),
            ProcessEvent::Exit(status) => return (output, status.code),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn exec_collects_bytes_and_ways_to_end() {
    let server = TestServer::start().await.unwrap();
    let sandbox = server
        .sdk()
        .unwrap()
        .sandboxes()
        .create("base")
        .await
        .unwrap();
    let result = sandbox
        .shell(r"printf '\377\000'; cat; echo err >&2; exit 3")
        .stdin(b"in")
        .await
        .unwrap();
    assert_eq!(&result.stdout[..], b"\xff\0in");
    assert_eq!(result.stderr_text(), "err\n");
    assert_eq!(result.exit_code, 3);
    let killed = sandbox.shell("kill -9 $$").await.unwrap();
    assert_eq!((killed.exit_code, killed.signal), (137, Some(9)));
    let missing = sandbox.exec("/no/such/program", NO_ARGS).await.unwrap();
    assert_eq!(missing.exit_code, 127);
    let slow = sandbox
        .exec("sleep", ["60"])
        .timeout(Duration::from_secs(1))
        .await
        .unwrap();
    assert!(slow.timed_out);
}

#[tokio::test]
async fn spawned_command_reads_input_and_gets_signals() {
    let server = TestServer::start().await.unwrap();
    let sandbox = server
        .sdk()
        .unwrap()
        .sandboxes()
        .create("base")
        .await
        .unwrap();
    let mut cat = sandbox.spawn("cat", NO_ARGS).stdin().await.unwrap();
    let input: Bytes = vec![b'x'; 1 << 20].into();
    let mut stdin = cat.take_stdin().unwrap();
    let (written, (output, code)) = tokio::join!(
        async {
            stdin.write(input.clone()).await?;
            stdin.close().await
        },
        collect(&mut cat)
    );
    written.unwrap();
    assert_eq!(code, 0);
    assert!(output == input);

    let mut sleep = sandbox.spawn("sleep", ["60"]).tag("nap").await.unwrap();
    let listed = sandbox.processes().await.unwrap();
    assert_eq!(listed[0].tag, "nap");
    sleep.signal(Signal::TERM).await.unwrap();
    let status = sleep.wait().await.unwrap();
    assert_eq!((status.code, status.signal), (143, Some(15)));
    assert!(
        sandbox
            .signal("nap", Signal::KILL)
            .await
            .unwrap_err()
            .is_not_found()
    );
}

#[tokio::test]
async fn terminal_has_the_size_it_is_told() {
    let server = TestServer::start().await.unwrap();
    let sandbox = server
        .sdk()
        .unwrap()
        .sandboxes()
        .create("base")
        .await
        .unwrap();
    let script = "stty size; read line; stty size; echo got $line";
    let mut process = sandbox
        .spawn("sh", ["-c", script])
        .tty(TerminalSize {
            cols: 100,
            rows: 30,
        })
        .await
        .unwrap();
    let Some(ProcessEvent::Tty(first)) = process.next().await.unwrap() else {
        panic!("no output");
    };
    assert_eq!(&first[..], b"30 100\r\n");
    process.resize(TerminalSize { cols: 80, rows: 24 });
    // The size goes its own way: it is there before the line is typed.
    tokio::time::sleep(Duration::from_millis(300)).await;
    process.write_stdin("hi\n").await.unwrap();
    let (rest, code) = collect(&mut process).await;
    let rest = String::from_utf8(rest).unwrap();
    assert!(
        rest.contains("24 80\r\n") && rest.contains("got hi"),
        "{rest:?}"
    );
    assert_eq!(code, 0);
}

#[tokio::test]
async fn steady_output_survives_cut_links() {
    // 6 MiB in pieces of 64 KiB, slower than the daemon's ring takes within a reconnect.
    let script = "for i in $(seq 96); do seq $i 100000000 | head -c 65536; sleep 0.01; done";
    cut_four_times(script, 6 << 20).await;
}

#[tokio::test]
async fn fast_output_survives_cut_links() {
    let script = format!("seq 1 100000000 | head -c {}", 24 << 20);
    cut_four_times(&script, 24 << 20).await;
}

/// Follows a command of so much output over a link that is cut four times meanwhile.
async fn cut_four_times(script: &str, size: usize) {
    let linked = Linked::start().await;
    let (link, sandbox) = (&linked.link, &linked.sandbox);
    let mut process = sandbox.spawn("sh", ["-c", script]).await.unwrap();
    let mut hash = Sha256::new();
    let mut taken = 0;
    let mut cuts = 0;
    loop {
        match process.next().await.unwrap().unwrap() {
            ProcessEvent::Stdout(bytes) => {
                hash.update(&bytes);
                taken += bytes.len();
                if taken > (cuts + 1) * size / 5 {
                    cuts += 1;
                    link.cut();
                }
            }
            ProcessEvent::Exit(status) => {
                assert!(status.success());
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((taken, cuts), (size, 4));
    let wanted = std::process::Command::new("sh")
        .args(["-c", &format!("{{ {script}; }} | sha256sum")])
        .output()
        .unwrap();
    let got: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(String::from_utf8_lossy(&wanted.stdout)[..64], got);
}

#[tokio::test]
async fn detached_command_is_found_again() {
    let server = TestServer::start().await.unwrap();
    let sandbox = server
        .sdk()
        .unwrap()
        .sandboxes()
        .create("base")
        .await
        .unwrap();
    let script = "echo one; read line; echo two $line";
    let spawn = sandbox.spawn("sh", ["-c", script]).stdin().tag("job");
    let mut process = spawn.await.unwrap();
    assert!(matches!(
        process.next().await.unwrap(),
        Some(ProcessEvent::Stdout(_))
    ));
    let offsets = process.offsets();
    process.detach();
    let mut again = sandbox.attach("job").from(offsets).await.unwrap();
    again.write_stdin("more\n").await.unwrap();
    let (output, code) = collect(&mut again).await;
    assert_eq!((output.as_slice(), code), (&b"two more\n"[..], 0));
    let background = sandbox.shell("sleep 30").background("later").await.unwrap();
    assert!(background.pid > 0);
    sandbox.signal(background.pid, Signal::KILL).await.unwrap();
}
