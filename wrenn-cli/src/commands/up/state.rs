//! The data directory of `wrenn up`: what is in it, and who uses it.
//!
//! | file | what |
//! |---|---|
//! | `wrenn.db` | the database of the control plane |
//! | `server.lock` | locked for as long as a `wrenn up`, or a `wrenn-server`, runs |
//! | `up.json` | what runs, for `wrenn down` and a second `wrenn up` |
//! | `up.log` | what the background process prints |
//! | `agent.log` | what an agent on this host prints |

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use atomic_write_file::AtomicWriteFile;
use atomic_write_file::unix::OpenOptionsExt as _;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

const OF_ROOT: &str = "/var/lib/wrenn/server";

/// What runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    /// The process of `wrenn up`.
    pub(crate) pid: u32,
    /// Where the API is.
    pub(crate) url: String,
    /// Logs one browser in, once.
    pub(crate) login_link: String,
    /// Where sandboxes run.
    pub(crate) sandboxes_run: String,
}

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct DataDirectory(PathBuf);

/// Held while a `wrenn up` runs. The kernel releases it however the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl DataDirectory {
    /// The directory that was named, or the user's. It is made if need be.
    pub(crate) fn open(named: Option<&Path>) -> anyhow::Result<Self> {
        let path = match named {
            Some(named) => named.to_owned(),
            None if rustix::process::geteuid().is_root() => OF_ROOT.into(),
            None => of_user()?,
        };
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        // A child has another working directory.
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot use {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.0.join("wrenn.db")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("up.log")
    }

    pub(crate) fn agent_log(&self) -> PathBuf {
        self.0.join("agent.log")
    }

    /// Takes the lock; none where another process has it.
    pub(crate) fn lock(&self) -> anyhow::Result<Option<Lock>> {
        let path = self.0.join("server.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// What a `wrenn up` said about itself. It may have been killed since.
    pub(crate) fn running(&self) -> anyhow::Result<Option<Running>> {
        let path = self.0.join("up.json");
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(crate) fn write_running(&self, running: &Running) -> anyhow::Result<()> {
        self.replace("up.json", &serde_json::to_vec_pretty(running)?)
    }

    pub(crate) fn forget_running(&self) {
        // One that stays is found to be stale by the lock.
        fs::remove_file(self.0.join("up.json")).ok();
    }

    /// Atomically replaces a file that only its owner reads.
    fn replace(&self, name: &str, contents: &[u8]) -> anyhow::Result<()> {
        let path = self.0.join(name);
        let write = || {
            let mut file = AtomicWriteFile::options()
                .preserve_mode(false)
                .mode(0o600)
                .open(&path)?;
            file.write_all(contents)?;
            file.commit()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// 32 random bytes in hexadecimal.
pub(crate) fn random_token() -> anyhow::Result<String> {
    let mut random = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .context("cannot read /dev/urandom")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn of_user() -> anyhow::Result<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let data = data
        .or(home)
        .context("there is no home directory; --data-dir names another one")?;
    Ok(data.join("wrenn/server"))
}
