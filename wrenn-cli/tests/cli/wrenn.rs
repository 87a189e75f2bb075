//! A server, and the program that talks to it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use wrenn_testing::{FakeHost, FakeHostBuilder, TestServer};

/// A server and an empty configuration.
pub(crate) struct Wrenn {
    pub(crate) server: TestServer,
    directory: TempDir,
}

/// The result of a run of the program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Wrenn {
    pub(crate) async fn start() -> Self {
        Self::with_host(FakeHost::builder()).await
    }

    pub(crate) async fn with_host(host: FakeHostBuilder) -> Self {
        Self {
            server: TestServer::builder().host(host).start().await.unwrap(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// A directory for local files.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// The program with these words, for this server, in the directory for local files.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.shell_command(env!("CARGO_BIN_EXE_wrenn"));
        command.args(words);
        command
    }

    /// Another program, which may call ours.
    pub(crate) fn shell_command(&self, program: &str) -> Command {
        let mut command = in_directory(program, self.directory.path());
        command
            .env("WRENN_API_URL", self.server.url())
            .env("WRENN_API_KEY", self.server.api_key());
        command
    }

    /// Runs the program, off this thread so that the fake host goes on.
    pub(crate) async fn run(&self, words: &[&str]) -> Ran {
        run(self.command(words)).await
    }

    /// Runs the program and gives its standard output; it must succeed.
    pub(crate) async fn ok(&self, words: &[&str]) -> String {
        let ran = self.run(words).await;
        assert_eq!(ran.code, Some(0), "{words:?}: {ran:?}");
        ran.stdout
    }

    /// Runs a script in the sandbox `web`, and gives its standard output.
    pub(crate) async fn shell(&self, script: &str) -> String {
        self.ok(&["sandbox", "exec", "web", "--", "sh", "-c", script])
            .await
    }

    /// Creates a sandbox with a name.
    pub(crate) async fn create(&self, name: &str) {
        self.ok(&["sandbox", "create", "--name", name]).await;
    }
}

/// The program with nothing of this user's environment.
pub(crate) fn program(directory: &Path) -> Command {
    in_directory(env!("CARGO_BIN_EXE_wrenn"), directory)
}

fn in_directory(program: &str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", directory)
        .current_dir(directory)
        .stdin(Stdio::null());
    command
}

pub(crate) async fn run(command: Command) -> Ran {
    run_with_input(command, b"").await
}

pub(crate) async fn run_with_input(mut command: Command, input: &[u8]) -> Ran {
    let input = input.to_vec();
    let output = tokio::task::spawn_blocking(move || {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        let writer = child.stdin.take().map(|mut stdin| {
            // The program may end without reading it.
            std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input).ok())
        });
        let output = child.wait_with_output().unwrap();
        writer.map(std::thread::JoinHandle::join);
        output
    });
    output.await.unwrap().into()
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
