//! Processes that a client holds by its connection.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use common::{PATIENCE, TestDaemon, is_alive, shell, until};
use wrenn_core::guest::{Command, GuestClient};
use wrenn_envd::process::GracePeriods;
use wrenn_proto::connectrpc::client::{ClientConfig, HttpClient};
use wrenn_proto::process::{ConnectRequest, PTY, ProcessClient, StartRequest};

/// A daemon that gives clients and processes no time.
async fn impatient() -> TestDaemon {
    TestDaemon::with_grace(GracePeriods {
        reconnect: Duration::ZERO,
        termination: Duration::ZERO,
        ..GracePeriods::default()
    })
    .await
}

/// A daemon that gives clients no time, and processes as much as they want.
async fn patient_with_processes() -> TestDaemon {
    TestDaemon::with_grace(GracePeriods {
        reconnect: Duration::ZERO,
        termination: 10 * PATIENCE,
        ..GracePeriods::default()
    })
    .await
}

fn held(script: &str) -> StartRequest {
    StartRequest {
        terminate_on_disconnect: true,
        ..shell(script)
    }
}

/// A script that writes its process's and its child's id to a file, and waits.
fn with_child(file: &Path) -> String {
    let file = file.display();
    format!("sleep 1000 & echo $$ $! >{file}.new; mv {file}.new {file}; wait")
}

async fn pids(file: &Path) -> Vec<u32> {
    until("the script runs", || file.exists()).await;
    let text = std::fs::read_to_string(file).unwrap();
    text.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}

/// Starts a process, waits for `started`, and breaks its connection without another word, as a
/// client does that is killed.
async fn start_and_vanish(address: SocketAddr, request: StartRequest, started: &Path) -> u32 {
    let started = started.to_owned();
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let config = ClientConfig::new(format!("http://{address}").parse().unwrap());
            let client = ProcessClient::new(HttpClient::plaintext(), config);
            let mut stream = client.start(request).await.unwrap();
            let mut told = common::Told::default();
            let first = stream.message().await.unwrap().unwrap().to_owned_message();
            told.take(first.event.into_option().and_then(|event| event.event));
            until("the script runs", || started.exists()).await;
            // Its connections are tasks of the runtime, which ends without asking them.
            std::mem::forget(stream);
            told.pid
        })
    });
    tokio::task::spawn_blocking(|| client.join().unwrap())
        .await
        .unwrap()
}

#[tokio::test]
async fn lost_client_terminates_process_group() {
    let daemon = patient_with_processes().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    start_and_vanish(daemon.address, held(&with_child(&file)), &file).await;
    let pids = pids(&file).await;
    assert_eq!(pids.len(), 2);
    until("both have ended", || !pids.iter().any(|pid| is_alive(*pid))).await;
    daemon.stop().await;
}

#[tokio::test]
async fn process_that_ignores_sigterm_is_killed() {
    let daemon = impatient().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let script = format!("trap '' TERM HUP; {}", with_child(&file));
    start_and_vanish(daemon.address, held(&script), &file).await;
    let pids = pids(&file).await;
    until("both have ended", || !pids.iter().any(|pid| is_alive(*pid))).await;
    daemon.stop().await;
}

#[tokio::test]
async fn children_of_terminated_process_are_killed() {
    let daemon = patient_with_processes().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    // Only the parent hears the signal.
    let script = format!(
        "(trap '' TERM; exec sleep 1000) & echo $$ $! >{file}.new; mv {file}.new {file}; \
         exec sleep 1000",
        file = file.display()
    );
    start_and_vanish(daemon.address, held(&script), &file).await;
    let pids = pids(&file).await;
    until("both have ended", || !pids.iter().any(|pid| is_alive(*pid))).await;
    daemon.stop().await;
}

#[tokio::test]
async fn lost_client_hangs_up_interactive_shell() {
    let daemon = patient_with_processes().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ready");
    let mut request = held("");
    request.pty = PTY::default().into();
    request.process.modify(|process| {
        process.args = vec!["-i".to_owned()];
        process.envs.insert("PS1".to_owned(), String::new());
        // Of dash and bash as sh: what an interactive shell reads first.
        let profile = directory.path().join("profile");
        std::fs::write(&profile, format!("touch {}\n", file.display())).unwrap();
        process
            .envs
            .insert("ENV".to_owned(), profile.display().to_string());
    });
    let pid = start_and_vanish(daemon.address, request, &file).await;
    until("the shell has ended", || !is_alive(pid)).await;
    daemon.stop().await;
}

#[tokio::test]
async fn detached_process_outlives_lost_client() {
    let daemon = impatient().await;
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("a"), directory.path().join("b"));
    start_and_vanish(daemon.address, shell(&with_child(&first)), &first).await;
    // One that is held, and comes later, has ended meanwhile.
    start_and_vanish(daemon.address, held(&with_child(&second)), &second).await;
    let held = pids(&second).await;
    until("the held one has ended", || !is_alive(held[0])).await;
    assert!(pids(&first).await.iter().all(|pid| is_alive(*pid)));
    daemon.stop().await;
}

#[tokio::test]
async fn held_process_with_second_client_goes_on() {
    let daemon = impatient().await;
    let directory = tempfile::tempdir().unwrap();
    let (file, end) = (directory.path().join("pids"), directory.path().join("end"));
    let script = format!(
        "echo $$ >{file}.new; mv {file}.new {file}; while ! test -e {end}; do sleep 0.05; done; exit 7",
        file = file.display(),
        end = end.display()
    );
    let mut request = held(&script);
    request.tag = Some("job".to_owned());
    // The second follows before the first has left.
    let first = daemon.processes();
    let mut stream = first.start(request).await.unwrap();
    stream.message().await.unwrap().unwrap();
    let pid = pids(&file).await[0];
    let second = daemon.processes();
    let connect = ConnectRequest {
        process: common::selector(pid).into(),
        ..Default::default()
    };
    let followed = second.connect(connect).await.unwrap();
    drop(stream);
    drop(first);
    std::fs::write(&end, "").unwrap();
    let told = common::follow!(followed).unwrap();
    assert_eq!(told.exit_code(), 7);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn command_of_dropped_client_ends() {
    let daemon = patient_with_processes().await;
    let guest = GuestClient::new(daemon.address, None).unwrap();
    let command = Command::new("sleep").args(["1000"]);
    let detached = guest.start(&command).await.unwrap();
    let held = guest
        .start(&command.clone().terminate_on_disconnect())
        .await
        .unwrap();
    let pids = (detached.pid(), held.pid());
    drop((detached, held));
    until("the held one has ended", || !is_alive(pids.1)).await;
    assert!(is_alive(pids.0));
    daemon.stop().await;
}
