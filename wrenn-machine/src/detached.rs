//! Programs that run in the machine on their own: servers, which outlive the connection that
//! started them and are found again by their name.
//!
//! ```text
//! start   sh: log opened, /run/wrenn/detached/NAME.pid written, "started" ─ exec ▶ program
//! find    NAME.pid ─▶ /proc/PID/environ holds WRENN_DETACHED=NAME ─▶ it runs
//! stop    SIGTERM ─▶ gone, or SIGKILL after a while
//! ```
//!
//! The guest daemon's own list of processes is not asked, because it is empty when the daemon
//! was restarted. A process id is reused at some time, and the environment tells a stranger.

use std::time::{Duration, Instant};

use wrenn_core::guest::{Command, GuestClient, GuestError, ProcessEvent, RpcCode};

use crate::client::{MachineClient, USER, WorkError};

const FOLDER: &str = "/run/wrenn/detached";
const NAME_VARIABLE: &str = "WRENN_DETACHED";
const POLL: Duration = Duration::from_millis(200);
/// What the kernel may take to end a process that was killed, in an emulated machine.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Becomes the program `$3`, with its arguments. Says on its standard output that it is about
/// to; before that, its standard error says why it is not.
const START: &str = r#"
log=$1 pid_file=$2
shift 2
command -v "$1" >/dev/null || { echo "$1 is not there" >&2; exit 127; }
mkdir -p "${log%/*}" "${pid_file%/*}" || exit 1
exec 3>>"$log" || exit 1
echo $$ >"$pid_file.new" && mv "$pid_file.new" "$pid_file" || exit 1
echo started
exec "$@" </dev/null >&3 2>&1 3>&-
"#;

/// A program to run in the machine on its own, as root.
#[derive(Debug, Clone)]
pub struct DetachedProgram {
    name: String,
    log: String,
    words: Vec<String>,
    command: Command,
}

impl DetachedProgram {
    /// The program at the path `program` in the machine, to be known as `name`. What it prints
    /// is appended to the file `log`, an absolute path.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        program: impl Into<String>,
        log: impl Into<String>,
    ) -> Self {
        let name = name.into();
        Self {
            command: Command::new("sh")
                .args(["-c", START, "sh"])
                .env(NAME_VARIABLE, &name)
                .tag(&name),
            name,
            log: log.into(),
            words: vec![program.into()],
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.words.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.command = self.command.env(name, value);
        self
    }

    fn command(&self) -> Command {
        let files = [self.log.clone(), pid_file(&self.name)];
        self.command.clone().args(files).args(self.words.clone())
    }
}

impl MachineClient {
    /// Starts a program that goes on when the connection ends. One that runs under its name
    /// is left alone. Returns whether it was started.
    ///
    /// Two callers at the same time may both start it; a lock between them is theirs to hold.
    ///
    /// # Errors
    /// It is not there, or its log cannot be opened. That it ends at once is no error: its log
    /// says why.
    pub async fn start_detached(&self, program: &DetachedProgram) -> Result<bool, WorkError> {
        if self.detached_pid(&program.name).await?.is_some() {
            return Ok(false);
        }
        let mut process = self.start(program.command()).await?;
        let mut reason = Vec::new();
        loop {
            match process.next().await? {
                ProcessEvent::Stdout(_) | ProcessEvent::Pty(_) => return Ok(true),
                ProcessEvent::Stderr(bytes) => reason.extend_from_slice(&bytes),
                ProcessEvent::Exit(status) => {
                    reason.extend_from_slice(status.status.as_bytes());
                    return Err(WorkError::StartDetached {
                        name: program.name.clone(),
                        reason: String::from_utf8_lossy(&reason).replace('\n', ", "),
                    });
                }
            }
        }
    }

    /// The id, in the machine, of the detached program `name`, if it runs.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub async fn detached_pid(&self, name: &str) -> Result<Option<u32>, WorkError> {
        let text = read_if_there(self.guest(), &pid_file(name)).await?;
        let pid = text.and_then(|text| String::from_utf8(text).ok()?.trim().parse().ok());
        let Some(pid) = pid else {
            return Ok(None);
        };
        let environment = format!("/proc/{pid}/environ");
        let environment = read_if_there(self.guest(), &environment).await?;
        Ok(environment
            .is_some_and(|environment| is_of(name, &environment))
            .then_some(pid))
    }

    /// Asks the detached program `name` to end, and kills it if it runs still after `grace`.
    /// Returns whether it ran.
    ///
    /// # Errors
    /// The daemon cannot be asked, or the program does not even end when it is killed.
    pub async fn stop_detached(&self, name: &str, grace: Duration) -> Result<bool, WorkError> {
        for (signal, limit) in [("-TERM", grace), ("-KILL", KILL_LIMIT)] {
            let Some(pid) = self.detached_pid(name).await? else {
                return Ok(signal != "-TERM");
            };
            let kill = Command::new("kill").args([signal, &pid.to_string()]);
            // It may have ended meanwhile, which the next question finds out.
            self.guest().output(&kill.user(USER)).await?;
            let deadline = Instant::now() + limit;
            while Instant::now() < deadline {
                if self.detached_pid(name).await? != Some(pid) {
                    return Ok(true);
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Err(WorkError::StopDetached {
            name: name.to_owned(),
        })
    }
}

fn pid_file(name: &str) -> String {
    format!("{FOLDER}/{}.pid", name.replace('/', "%"))
}

/// Whether a process with this environment is the detached program `name`.
fn is_of(name: &str, environment: &[u8]) -> bool {
    let wanted = format!("{NAME_VARIABLE}={name}");
    environment
        .split(|byte| *byte == 0)
        .any(|one| one == wanted.as_bytes())
}

async fn read_if_there(guest: &GuestClient, path: &str) -> Result<Option<Vec<u8>>, GuestError> {
    match guest.read_file(path).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.code() == Some(RpcCode::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::path::Path;
    use std::process::{Child, Stdio};

    use super::*;

    /// Runs [`START`] here, as the daemon does in the machine.
    fn start(log: &Path, pid_file: &Path, words: &[&str]) -> Child {
        std::process::Command::new("sh")
            .args(["-c", START, "sh"])
            .args([log, pid_file])
            .args(words)
            .env(NAME_VARIABLE, "server")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    fn started_program_is_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (log, pid_file) = (
            dir.path().join("logs/log"),
            dir.path().join("run/server.pid"),
        );
        let mut child = start(&log, &pid_file, &["sh", "-c", "echo up; exec sleep 1000"]);
        let mut said = String::new();
        // Ends although the program runs: it holds the log and not the caller's stream.
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_to_string(&mut said).unwrap();
        assert_eq!(said, "started\n");
        let pid: u32 = fs::read_to_string(&pid_file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(pid, child.id());
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(is_of("server", &environment));
        assert!(!is_of("serve", &environment) && !is_of("server2", &environment));
        let deadline = Instant::now() + Duration::from_secs(60);
        while fs::read_to_string(&log).unwrap() != "up\n" {
            assert!(Instant::now() < deadline, "no output in the log");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_of("server", b""), "a zombie's environment is empty");
    }

    #[test]
    fn missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("server.pid");
        let child = start(&dir.path().join("log"), &pid_file, &["/no/such/program"]);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(127));
        let reason = String::from_utf8(output.stderr).unwrap();
        assert_eq!(reason, "/no/such/program is not there\n");
        assert!(output.stdout.is_empty() && !pid_file.exists());
    }

    #[test]
    fn log_that_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let child = start(dir.path(), &dir.path().join("server.pid"), &["true"]);
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(!output.stderr.is_empty());
    }

    #[test]
    fn pid_file_stays_in_its_folder() {
        assert_eq!(pid_file("a/../b"), "/run/wrenn/detached/a%..%b.pid");
    }
}
