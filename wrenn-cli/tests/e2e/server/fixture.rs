//! `wrenn up` for one test, with a database of its own.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use futures::FutureExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_sdk::credentials::Credentials;
use wrenn_sdk::{Client, CreateOptions, ListOptions, Sandbox};

use crate::agent::stage::ended;
use crate::stage::{self, MINIMAL, until};

/// Runs a test with a `wrenn up` of its own. Whatever becomes of it, its sandboxes and snapshots
/// are gone afterwards, and so are server and agent.
pub(super) fn with_server<F: Future<Output = ()>>(test: impl FnOnce(std::sync::Arc<TestUp>) -> F) {
    stage::enter(|host| async move {
        let up = std::sync::Arc::new(TestUp::new());
        let outcome = AssertUnwindSafe(async {
            up.start().await;
            test(std::sync::Arc::clone(&up)).await;
        })
        .catch_unwind()
        .await;
        if let Err(panic) = outcome {
            eprintln!("the log of wrenn up:\n{}", up.log());
            up.end(Signal::SIGTERM).await;
            up.down();
            stage::destroy_orphans(&host).await;
            resume_unwind(panic);
        }
        up.destroy_all().await;
        up.end(Signal::SIGTERM).await;
        up.down();
        stage::destroy_orphans(&host).await;
    });
}

/// The program under test, on ports of its own.
pub(super) struct TestUp {
    directory: tempfile::TempDir,
    child: Mutex<Option<Child>>,
}

impl TestUp {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            child: Mutex::new(None),
        }
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(stage::wrenn());
        command
            .arg(subcommand)
            .arg("--root")
            .arg(stage::root().path())
            .arg("--data-dir")
            .arg(self.directory.path())
            .env("WRENN_CONFIG_DIR", self.directory.path())
            .env("WRENN_LOG", "info")
            .env("AGENT_BOOT_DEADLINE", "3m")
            .env_remove("WRENN_API_URL")
            .env_remove("WRENN_API_KEY")
            .stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it is up.
    pub(super) async fn start(&self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("test.log"))
            .unwrap();
        let state = self.state_file();
        std::fs::remove_file(&state).ok();
        let child = self
            .command("up")
            .args(["--here", "--listen", "127.0.0.1:17400"])
            .args(["--agent-listen", "127.0.0.1:17410"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = child.id();
        *self.child.lock().unwrap() = Some(child);
        until("wrenn up is up", || async { state.exists() || ended(pid) }).await;
        assert!(state.exists(), "it did not start:\n{}", self.log());
    }

    fn state_file(&self) -> PathBuf {
        self.directory.path().join("up.json")
    }

    pub(super) fn database(&self) -> PathBuf {
        self.directory.path().join("wrenn.db")
    }

    pub(super) fn log(&self) -> String {
        let read = |name| std::fs::read_to_string(self.directory.path().join(name));
        format!(
            "{}\n-- agent --\n{}",
            read("test.log").unwrap_or_default(),
            read("agent.log").unwrap_or_default()
        )
    }

    /// Ends the server's process by a signal; after SIGKILL its agent goes on.
    pub(super) async fn end(&self, signal: Signal) {
        let Some(mut child) = self.child.lock().unwrap().take() else {
            return;
        };
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let pid = child.id();
        until("wrenn up has ended", || async { ended(pid) }).await;
        child.wait().unwrap();
    }

    /// Ends the agent that a killed `wrenn up` left.
    fn down(&self) {
        let status = self.command("down").status().unwrap();
        assert!(status.success());
    }

    pub(super) fn client(&self) -> Client {
        let file = self.directory.path().join("credentials.json");
        let saved = Credentials::load_from(&file)
            .unwrap()
            .expect("a key is saved");
        Client::builder()
            .url(saved.api_url)
            .key(saved.api_key)
            .build()
            .unwrap()
    }

    /// A small sandbox.
    pub(super) async fn create(&self) -> Sandbox {
        self.client().sandboxes().create(small()).await.unwrap()
    }

    async fn destroy_all(&self) {
        let client = self.client();
        for snapshot in client.snapshots().list().all().await.unwrap() {
            client
                .snapshots()
                .delete(snapshot.reference())
                .await
                .unwrap();
        }
        let sandboxes = client.sandboxes().list(ListOptions::new());
        for sandbox in sandboxes.all().await.unwrap() {
            sandbox.destroy().await.unwrap();
        }
    }
}

/// What a small sandbox is created from.
pub(super) fn small() -> CreateOptions {
    CreateOptions::from_template(MINIMAL)
        .vcpus(1)
        .memory_mib(128)
}
