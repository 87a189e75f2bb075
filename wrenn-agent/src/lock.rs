//! One agent for each root directory: a file that is locked for as long as it runs.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use wrenn_core::RootDirectory;

/// Held while this agent runs. The kernel gives it back however the agent ends.
#[derive(Debug)]
pub(crate) struct AgentLock {
    _file: File,
}

/// Why an agent may not run on a root directory.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another does.
    #[error(
        "another agent{} runs on {}; stop it first, or use another --root",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        .root.display()
    )]
    Taken {
        /// The root directory.
        root: PathBuf,
        /// The other agent's process id, if it wrote one.
        pid: Option<u32>,
    },
    /// The file cannot be made or locked.
    #[error("cannot lock {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl AgentLock {
    pub(crate) fn acquire(root: &RootDirectory) -> Result<Self, LockError> {
        let path = root.path().join("agent.lock");
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(root.path()).map_err(failed)?;
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Who it is only makes the message better.
                let _read = file.read_to_string(&mut text);
                return Err(LockError::Taken {
                    root: root.path().to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_other_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::new(directory.path().join("new"));
        let first = AgentLock::acquire(&root).unwrap();
        let error = AgentLock::acquire(&root).unwrap_err().to_string();
        let wanted = format!("another agent (process {}) runs on", std::process::id());
        assert!(error.starts_with(&wanted), "{error}");
        drop(first);
        AgentLock::acquire(&root).unwrap();
    }
}
