//! No process and no file is left.

use wrenn_testing::FakeHost;

use crate::client::*;

/// Starts a process in the background that has left its session and its parent.
const DAEMON: &str = "setsid sh -c 'sleep 1000 & sleep 1000' >/dev/null 2>&1 </dev/null &";

async fn pids(host: &FakeHost, number: u32) -> Vec<i32> {
    until("the processes run", || host.pids(&id(number)).len() >= 4).await;
    host.pids(&id(number))
}

#[tokio::test]
async fn destroy_ends_every_process() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    output(&client, 1, DAEMON).await;
    let pids = pids(&host, 1).await;
    let home = host.home(&id(1)).unwrap();
    assert!(home.exists());
    destroy(&client, 1).await.unwrap();
    let alive: Vec<_> = pids.iter().filter(|pid| is_alive(**pid)).collect();
    assert!(alive.is_empty(), "{alive:?} of {pids:?} are left");
    assert!(!home.exists());
}

#[tokio::test]
async fn drop_ends_running_and_paused_guests() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    let mut all = Vec::new();
    for number in [1, 2] {
        create(&client, number).await;
        output(&client, number, DAEMON).await;
        all.extend(pids(&host, number).await);
    }
    pause(&client, 2).await.unwrap();
    let home = host.home(&id(1)).unwrap();
    drop(host);
    let alive: Vec<_> = all.iter().filter(|pid| is_alive(**pid)).collect();
    assert!(alive.is_empty(), "{alive:?} of {all:?} are left");
    assert!(!home.exists());
}

/// Runs `hold_until_killed` in a process of its own, and kills that.
#[tokio::test]
async fn guests_end_with_a_killed_test() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::hold_until_killed", "--nocapture"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find(|line| line.contains("holds:"))
        .unwrap();
    let (_, line) = line.split_once("holds:").unwrap();
    let (pids, home) = line.split_once(';').unwrap();
    let pids: Vec<i32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
    let home = std::path::PathBuf::from(home);
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    assert!(home.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    until("its guests end", || !pids.iter().any(|pid| is_alive(*pid))).await;
    until("their files are removed", || !home.exists()).await;
}

const HOLD: &str = "WRENN_TESTING_HOLD";

#[tokio::test]
async fn hold_until_killed() {
    if std::env::var_os(HOLD).is_none() {
        // Only the test above runs it.
        return;
    }
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    output(&client, 1, DAEMON).await;
    let pids: Vec<String> = pids(&host, 1).await.iter().map(i32::to_string).collect();
    let home = host.home(&id(1)).unwrap();
    println!("holds:{};{}", pids.join(" "), home.display());
    std::future::pending::<()>().await;
}
