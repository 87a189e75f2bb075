//! What is remembered about a machine, in a directory of its own.
//!
//! ```text
//! $XDG_STATE_HOME/wrenn/machine/NAME/
//!   lock          flock()ed while the machine is started or stopped
//!   machine.json  the running machine; written when it is up, removed when it is down
//!   qemu.log      what QEMU itself has to say
//!   qemu.pid      written by QEMU itself, so that not even a crash of ours loses it
//!   qmp.sock      QEMU's control socket
//!   token         the daemon's access token, readable by the owner only
//!   console.log   the console of this run, or of the last one
//!   data.img      the data disk
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use wrenn_core::guest::AccessToken;

use crate::accelerator::Accelerator;
use crate::config::{Hardware, MachineName};
use crate::error::{AtPath, MachineError};
use wrenn_core::process::{LiveProcess, ProcessIdentity, has_argument};

/// A console's last words in an error.
const TAIL_BYTES: usize = 4000;
const TAIL_LINES: usize = 25;

/// `machine.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) process: ProcessIdentity,
    pub(crate) recipe: String,
    pub(crate) accelerator: Accelerator,
    pub(crate) hardware: Hardware,
    /// The daemon's port on the host's loopback.
    pub(crate) port: u16,
    /// Ports of the machine that were forwarded later, and their ports on the host's loopback.
    /// They live as long as the process.
    pub(crate) forwards: BTreeMap<u16, u16>,
}

/// The directory of one machine.
#[derive(Debug, Clone)]
pub(crate) struct StateDirectory {
    dir: PathBuf,
    name: MachineName,
}

/// Proof that nobody else starts or stops this machine.
#[derive(Debug)]
pub(crate) struct Locked {
    _lock: Flock<File>,
}

/// The folder of all machines: `$XDG_STATE_HOME/wrenn/machine`, by default
/// `~/.local/state/wrenn/machine`.
pub(crate) fn home() -> Result<PathBuf, MachineError> {
    let from = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
    from("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| from("HOME").map(|home| Path::new(&home).join(".local/state")))
        .map(|dir| dir.join("wrenn/machine"))
        .ok_or(MachineError::NoStateHome)
}

/// Takes the lock, waiting on a thread of its own for whoever has it.
pub(crate) async fn locked(state: &StateDirectory) -> Result<Locked, MachineError> {
    let state = state.clone();
    blocking(move || state.lock()).await
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MachineError> + Send + 'static,
) -> Result<T, MachineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The work panicked, or the runtime is going down; so does the caller.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(MachineError::Process {
                action: "work for",
                source: std::io::Error::other(error),
            }),
        },
    }
}

impl StateDirectory {
    pub(crate) fn new(home: &Path, name: &MachineName) -> Self {
        Self {
            dir: home.join(name.as_str()),
            name: name.clone(),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    pub(crate) fn data_disk(&self) -> PathBuf {
        self.dir.join("data.img")
    }

    /// Takes the lock, waiting for whoever has it.
    pub(crate) fn lock(&self) -> Result<Locked, MachineError> {
        fs::create_dir_all(&self.dir).at("create", &self.dir)?;
        let owner_only = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&self.dir, owner_only).at("protect", &self.dir)?;
        let path = self.dir.join("lock");
        let file = File::create(&path).at("create", &path)?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| MachineError::state("lock", &path, errno.into()))?;
        Ok(Locked { _lock: lock })
    }

    /// The record of the running machine with its process, if there is one. A record whose
    /// process is gone counts for nothing.
    pub(crate) fn running(&self) -> Result<Option<(Record, LiveProcess)>, MachineError> {
        let path = self.record();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.at("read", &path)?,
        };
        let record: Record = serde_json::from_slice(&text)
            .map_err(|source| MachineError::BadState { path, source })?;
        let process = record
            .process
            .open()
            .at("look at the process of", &self.record())?;
        Ok(process.map(|process| (record, process)))
    }

    /// A QEMU of this machine that no record tells of: whoever started it did not live to
    /// write one.
    pub(crate) fn orphan(&self) -> Option<LiveProcess> {
        let pid = self.started_pid()?;
        let identity = ProcessIdentity::of(pid).ok()?;
        let process = identity.open().ok()??;
        // The pid file is an argument that no other machine's QEMU has.
        let ours = self.dir.join("qemu.pid");
        has_argument(pid, &ours.to_string_lossy()).then_some(process)
    }

    /// The number in QEMU's pid file.
    pub(crate) fn started_pid(&self) -> Option<i32> {
        fs::read_to_string(self.dir.join("qemu.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Writes the record, whole or not at all.
    pub(crate) fn write_record(&self, _lock: &Locked, record: &Record) -> Result<(), MachineError> {
        let path = self.record();
        let text = serde_json::to_vec_pretty(record).map_err(|source| MachineError::BadState {
            path: path.clone(),
            source,
        })?;
        let write = || {
            let mut file = AtomicWriteFile::open(&path)?;
            file.write_all(&text)?;
            file.commit()
        };
        write().at("write", &path)
    }

    /// Removes what only a running machine has.
    pub(crate) fn clear(&self, _lock: &Locked) -> Result<(), MachineError> {
        for name in ["machine.json", "qemu.pid", "qemu.log", "qmp.sock", "token"] {
            let path = self.dir.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.at("remove", &path)?,
            }
        }
        Ok(())
    }

    /// Makes a new token for the daemon.
    pub(crate) fn new_token(&self, _lock: &Locked) -> Result<AccessToken, MachineError> {
        let token = AccessToken::random();
        let path = self.dir.join("token");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .at("create", &path)?;
        file.write_all(token.reveal().as_bytes())
            .at("write", &path)?;
        Ok(token)
    }

    /// The running daemon's token.
    pub(crate) fn token(&self) -> Result<AccessToken, MachineError> {
        let path = self.dir.join("token");
        fs::read_to_string(&path)
            .at("read", &path)
            .map(AccessToken::new)
    }

    /// Whether the machine has said `text` on its console.
    pub(crate) fn console_says(&self, text: &str) -> bool {
        let log = fs::read(self.console()).unwrap_or_default();
        String::from_utf8_lossy(&log).contains(text)
    }

    /// The end of the console's log.
    pub(crate) fn console_tail(&self) -> String {
        let log = fs::read(self.console()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log[log.len().saturating_sub(TAIL_BYTES)..]);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    pub(crate) fn name(&self) -> &MachineName {
        &self.name
    }

    fn record(&self) -> PathBuf {
        self.dir.join("machine.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MachineConfig;

    fn directory(home: &Path) -> StateDirectory {
        StateDirectory::new(home, &MachineName::default())
    }

    fn record(pid: i32) -> Record {
        Record {
            version: 1,
            process: ProcessIdentity::of(pid).unwrap(),
            recipe: "r".into(),
            accelerator: Accelerator::Emulation,
            hardware: MachineConfig::default().hardware(None, Accelerator::Emulation),
            port: 4711,
            forwards: BTreeMap::from([(80, 8080)]),
        }
    }

    #[test]
    fn record_counts_while_its_process_lives() {
        let home = tempfile::tempdir().unwrap();
        let state = directory(home.path());
        let lock = state.lock().unwrap();
        assert!(state.running().unwrap().is_none());

        let alive = record(std::process::id().cast_signed());
        state.write_record(&lock, &alive).unwrap();
        assert_eq!(state.running().unwrap().unwrap().0, alive);

        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        state
            .write_record(&lock, &record(child.id().cast_signed()))
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(state.running().unwrap().is_none(), "stale record");
    }

    #[test]
    fn damaged_record_is_an_error_and_clear_heals_it() {
        let home = tempfile::tempdir().unwrap();
        let state = directory(home.path());
        let lock = state.lock().unwrap();
        fs::write(state.dir().join("machine.json"), "{").unwrap();
        assert!(matches!(
            state.running(),
            Err(MachineError::BadState { .. })
        ));
        state.clear(&lock).unwrap();
        assert!(state.running().unwrap().is_none());
    }

    #[test]
    fn pid_file_with_another_process_in_it_is_no_orphan() {
        let home = tempfile::tempdir().unwrap();
        let state = directory(home.path());
        let _lock = state.lock().unwrap();
        fs::write(state.dir().join("qemu.pid"), std::process::id().to_string()).unwrap();
        assert!(state.orphan().is_none());
    }

    #[test]
    fn token_is_for_the_owner_only_and_new_each_time() {
        let home = tempfile::tempdir().unwrap();
        let state = directory(home.path());
        let lock = state.lock().unwrap();
        let one = state.new_token(&lock).unwrap();
        let two = state.new_token(&lock).unwrap();
        assert!(one != two && state.token().unwrap() == two);
        let mode = fs::metadata(state.dir().join("token"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn console_tail_is_short_and_never_fails() {
        let home = tempfile::tempdir().unwrap();
        let state = directory(home.path());
        assert_eq!(state.console_tail(), "");
        let _lock = state.lock().unwrap();
        let text: String = (0..1000).map(|line| format!("line {line}\r\n")).collect();
        fs::write(state.console(), text).unwrap();
        let tail = state.console_tail();
        assert!(
            tail.ends_with("line 999") && tail.lines().count() == TAIL_LINES,
            "{tail}"
        );
    }
}
