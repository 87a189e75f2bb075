//! The program `wrenn-server` in a process of its own, in front of a fake host: its memory and
//! its log are its own, and not those of the test.

#![allow(
    dead_code,
    reason = "each test program uses the part of it that it needs"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the program that is tested is a process"
)]

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wrenn_sdk::Client;
use wrenn_testing::FakeHost;

const START_DEADLINE: Duration = Duration::from_secs(30);
const KIB_PER_MIB: f64 = 1024.0;

/// A running server, ended when it is dropped.
pub(crate) struct ServerProcess {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) api_key: String,
    pub(crate) host: FakeHost,
    directory: TempDir,
}

/// Memory of a process that is in use, in MiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident: f64,
    /// The most that was resident since the last reset.
    pub(crate) peak: f64,
}

impl ServerProcess {
    /// Starts one in front of a new fake host, with this log filter.
    pub(crate) async fn start(log: &str) -> Self {
        let host = FakeHost::start().await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let token_file = directory.path().join("agent-token");
        fs::write(&token_file, host.token().unwrap()).unwrap();
        let command = |stderr: Stdio| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-server"));
            command
                .args(["--listen", "127.0.0.1:0", "--agent-url", &host.url()])
                .arg("--agent-token-file")
                .arg(&token_file)
                .arg("--data-dir")
                .arg(directory.path().join("server"))
                .env_remove("DATABASE_URL")
                .env("WRENN_LOG", log)
                .stdin(Stdio::null())
                .stderr(stderr);
            command
        };
        let created = command(Stdio::piped())
            .args(["--create-key", "test"])
            .output()
            .unwrap();
        let complaints = String::from_utf8_lossy(&created.stderr);
        assert!(created.status.success(), "{complaints}");
        let api_key = String::from_utf8(created.stdout).unwrap().trim().to_owned();
        let log_file = directory.path().join("server.log");
        let mut child = command(File::create(&log_file).unwrap().into())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let address = listening(&mut child, &log_file).await;
        Self {
            child,
            address,
            api_key,
            host,
            directory,
        }
    }

    pub(crate) fn sdk(&self) -> Client {
        self.sdk_at(self.address)
    }

    /// A client that reaches it by way of another address.
    pub(crate) fn sdk_at(&self, address: SocketAddr) -> Client {
        Client::builder()
            .url(format!("http://{address}"))
            .key(&self.api_key)
            .build()
            .unwrap()
    }

    /// Its whole log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("server.log")).unwrap()
    }

    pub(crate) fn memory(&self) -> Memory {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let field = |name: &str| -> f64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            let kib = line.split_whitespace().nth(1).unwrap();
            kib.parse::<f64>().unwrap() / KIB_PER_MIB
        };
        Memory {
            resident: field("VmRSS:"),
            peak: field("VmHWM:"),
        }
    }

    /// Forgets the peak of its memory.
    pub(crate) fn reset_peak(&self) {
        // `proc_pid_clear_refs(5)`: 5 sets the peak to what is resident now.
        fs::write(self.proc("clear_refs"), "5").unwrap();
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.id())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The address that the program logs once it serves.
async fn listening(child: &mut Child, log_file: &Path) -> SocketAddr {
    let since = Instant::now();
    loop {
        let log = fs::read_to_string(log_file).unwrap();
        let line = log.lines().find_map(|line| line.split_once("address="));
        if let Some((_, address)) = line
            && log.ends_with('\n')
        {
            let address = address.split_whitespace().next().unwrap();
            return address.parse().unwrap();
        }
        let ended = child.try_wait().unwrap();
        assert!(
            ended.is_none() && since.elapsed() < START_DEADLINE,
            "the server did not start ({ended:?}):\n{log}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
