//! A PostgreSQL server of the test's own, from Debian's package, on a Unix socket.

#![allow(
    clippy::disallowed_methods,
    reason = "a database server is a process that the test starts"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// `initdb` refuses root.
const USER: &str = "postgres";

/// A server. Ended and removed when it is dropped.
pub(super) struct PostgresServer {
    child: Child,
    directory: tempfile::TempDir,
}

impl PostgresServer {
    pub(super) fn start() -> Self {
        let bin = binaries();
        let directory = tempfile::Builder::new()
            .prefix("wrenn-pg")
            .tempdir()
            .unwrap();
        let data = directory.path().join("data");
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir(&data).unwrap();
        if is_root() {
            let owned = Command::new("chown")
                .args(["-R", USER])
                .arg(directory.path())
                .status()
                .unwrap();
            assert!(owned.success());
        }
        let made = as_user(&bin.join("initdb"))
            .args(["--auth=trust", "--username=wrenn", "--no-sync", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success(), "initdb failed");
        let child = as_user(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(directory.path())
            .args(["-h", "", "-F"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let server = Self { child, directory };
        let begun = Instant::now();
        let socket = server.directory.path().join(".s.PGSQL.5432");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(
                begun.elapsed() < START_TIMEOUT,
                "postgres did not start: {}",
                std::fs::read_to_string(server.directory.path().join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    pub(super) fn url(&self) -> String {
        let directory = self.directory.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://wrenn@{directory}/postgres")
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // SIGQUIT would do, but the directory goes anyway.
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).ok();
        self.child.wait().ok();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as the user of the package where we are root.
fn as_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", USER, "--regid", USER, "--init-groups", "--"])
        .arg(program)
        .current_dir("/");
    command
}

/// Where Debian's newest PostgreSQL has its programs.
fn binaries() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed: apt-get install postgresql, or cargo xtask setup")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    versions.sort();
    versions.pop().expect("PostgreSQL has its programs")
}
