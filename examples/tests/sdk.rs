//! The examples over the SDK, each run against a server in this process and a fake host.
//!
//! Cargo builds the examples with this test, but for `cargo test --test sdk`.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::PathBuf;
use std::process::{Command, Stdio};

use wrenn_testing::TestServer;

/// How an example ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// The program of an example, beside the directory of the tests.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(2).unwrap();
    let program = target.join("examples").join(name);
    assert!(
        program.is_file(),
        "build {program:?}: cargo build --examples -p wrenn-examples"
    );
    program
}

async fn run(server: &TestServer, name: &str, arguments: &[&str], input: &'static str) -> Ran {
    let mut command = Command::new(program(name));
    command
        .args(arguments)
        .env("WRENN_API_URL", server.url())
        .env("WRENN_API_KEY", server.api_key())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Off this thread, on which the fake host serves.
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // An example may end without reading it.
        std::io::Write::write_all(&mut stdin, input.as_bytes()).ok();
        drop(stdin);
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs an example that must succeed and leave no sandbox.
async fn succeed(server: &TestServer, name: &str, arguments: &[&str], input: &'static str) -> Ran {
    let ran = run(server, name, arguments, input).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(server.host().sandboxes().is_empty());
    ran
}

#[tokio::test(flavor = "multi_thread")]
async fn hello_prints_output_of_command() {
    let server = TestServer::start().await.unwrap();
    let ran = succeed(&server, "hello", &[], "").await;
    assert_eq!(ran.stdout, "hello from 42\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn streaming_exec_prints_events_and_exit_code() {
    let server = TestServer::start().await.unwrap();
    let ran = run(&server, "streaming_exec", &[], "").await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert_eq!(ran.stdout, "hello, Ada\nhello, Grace\nexit code 3\n");
    assert_eq!(ran.stderr, "bye\n");
    assert!(server.host().sandboxes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_prints_copies_and_changes() {
    let server = TestServer::start().await.unwrap();
    let ran = succeed(&server, "files", &[], "").await;
    let wanted = "hello\n4194304 bytes are in the sandbox\nhello.txt 6 bytes\n\
                  large 4194304 bytes\nlarge removed\n";
    assert_eq!(ran.stdout, wanted);
    assert!(
        ran.stderr.ends_with("4194304 bytes of Some(4194304)\n"),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn code_runner_passes_output_and_exit_code() {
    let server = TestServer::start().await.unwrap();
    let ran = succeed(&server, "code_runner", &["print(6 * 7)"], "").await;
    assert_eq!(ran.stdout, "42\n");
    let ran = succeed(&server, "code_runner", &[], "print('from stdin')\n").await;
    assert_eq!(ran.stdout, "from stdin\n");
    let ran = run(&server, "code_runner", &["import sys; sys.exit('no')"], "").await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), "no\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn code_runner_starts_from_snapshot() {
    let server = TestServer::start().await.unwrap();
    let client = server.sdk().unwrap();
    let warm = client.sandboxes().create("base").await.unwrap();
    warm.files().write("/tmp/warm", "warm").await.unwrap();
    warm.snapshot("code-runner").await.unwrap();
    warm.destroy().await.unwrap();
    let code = "print(open('/tmp/warm').read())";
    let ran = run(&server, "code_runner", &[code], "").await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "warm\n"),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_key_is_told_in_a_sentence() {
    let server = TestServer::start().await.unwrap();
    let mut command = Command::new(program("hello"));
    command.env("WRENN_API_URL", server.url()).env(
        "WRENN_API_KEY",
        "wrn_0000000000000000000000000000000000000000",
    );
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("Error: no valid credential"), "{stderr}");
}
