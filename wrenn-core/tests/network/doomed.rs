//! A process of its own that takes things and is killed, with no chance to give them back.
//!
//! It is this test program again, told to run only the test that started it. In the child
//! that test sees [`root`] and does what the parent wants of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::PATIENCE;

/// In the environment of the child: the root directory in which it takes slots and dies.
const ROOT: &str = "WRENN_TEST_DOOMED_ROOT";

/// In the child, the root directory that it was given.
pub(crate) fn root() -> Option<PathBuf> {
    std::env::var_os(ROOT).map(PathBuf::from)
}

/// Runs the child's part to its end. That it holds something it tells by what is on the
/// host; then it waits, so that it still holds it when it is killed.
pub(crate) fn live<T>(part: impl Future<Output = T>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let _held = part.await;
            // The other end of standard input closes at the latest when the test ends.
            tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
                .await
                .unwrap()
                .unwrap();
        });
}

/// A child that runs, in the namespaces of the thread that started it.
pub(crate) struct Doomed(Child);

impl Doomed {
    /// Starts the child's part of the test of this name.
    pub(crate) fn start(test: &str, root: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ROOT, root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits until the child has got so far.
    pub(crate) async fn until(&mut self, mut so_far: impl AsyncFnMut() -> bool) {
        let begun = Instant::now();
        while !so_far().await {
            assert!(begun.elapsed() < PATIENCE, "the child does nothing");
            assert_eq!(self.0.try_wait().unwrap(), None, "the child ended early");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills it.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
