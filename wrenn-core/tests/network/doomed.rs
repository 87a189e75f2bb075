//! A process of its own that takes things and is killed, with no chance to give them back.
//!
//! It is this test program again, told to run only the test that started it. In the child
//! that test sees [`root`] and does what the parent wants of it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::world::PATIENCE;

/// In the environment of the child: the root directory in which it takes slots and dies.
const ROOT: &str = "WRENN_TEST_DOOMED_ROOT";
/// What the child prints when its part is done.
const DONE: &str = "all is held";

/// In the child, the root directory that it was given.
pub(crate) fn root() -> Option<PathBuf> {
    std::env::var_os(ROOT).map(PathBuf::from)
}

/// Runs the child's part to its end, tells the parent so, and waits, so that what the part
/// has made is still held when the child is killed.
pub(crate) fn live<T>(part: impl Future<Output = T>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let _held = part.await;
            // On a line of its own: the test harness has begun one.
            let line = format!("\n{DONE}\n");
            std::io::stdout().write_all(line.as_bytes()).unwrap();
            // The other end of standard input closes at the latest when the test ends.
            tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
                .await
                .unwrap()
                .unwrap();
        });
}

/// A child that has done its part and lives.
pub(crate) struct Doomed(Child);

impl Doomed {
    /// Starts the child's part of the test of this name, in the namespaces of the calling
    /// thread, and waits until it is done.
    pub(crate) async fn start(test: &str, root: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ROOT, root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let done = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line == DONE {
                    return true;
                }
            }
            false
        };
        let done = timeout(PATIENCE, done).await;
        assert_eq!(done, Ok(true), "the child has not done its part");
        Self(child)
    }

    /// Kills it.
    pub(crate) async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }
}
