//! What can go wrong with a machine, told so that the reader knows what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wrenn_core::guest::GuestError;
use wrenn_images::BuildError;
use wrenn_images::command::CommandError;

use crate::config::MachineName;

/// What QEMU says when a host port of a forward is in use.
pub(crate) const RULE_REFUSED: &str = "Could not set up host forwarding rule";

/// A machine could not be started, reached or stopped.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("cannot build what the machine boots from")]
    Build(#[from] BuildError),
    #[error("{} is missing; build it with: cargo build --workspace", path.display())]
    NoProgram { path: PathBuf },
    #[error("the machine needs QEMU")]
    NoQemu(#[source] CommandError),
    #[error("QEMU does not start:\n{output}")]
    Qemu { output: String },
    #[error("the host has no {mib} MiB of memory to give; start the machine with less (--memory)")]
    OutOfMemory { mib: u32 },
    #[error("port {port} of the host's loopback was taken by another program; start again")]
    PortTaken { port: u16 },
    #[error("no port of the host's loopback is free")]
    NoFreePort(#[source] io::Error),
    #[error("the disk of machine {name} is used by another process")]
    DiskInUse { name: MachineName },
    #[error("{} has no room left; free some space there", path.display())]
    DiskFull { path: PathBuf },
    #[error("the machine was not up after {limit:?}; its last words:\n{console}")]
    BootDeadline { limit: Duration, console: String },
    #[error("the machine ended while it booted; its last words:\n{console}")]
    Died { console: String },
    #[error("machine {name} is not running; start it with: wrenn machine start")]
    NotRunning { name: MachineName },
    #[error("cannot {action} {}", path.display())]
    State {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged", path.display())]
    BadState {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("neither XDG_STATE_HOME nor HOME is set, so there is no place for the machine's state")]
    NoStateHome,
    #[error("cannot {action} the machine's process")]
    Process {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("QEMU's control socket does not answer")]
    Control(#[from] crate::qmp::QmpError),
    #[error("machine {name} was restarted meanwhile")]
    Restarted { name: MachineName },
    #[error("QEMU refused to forward port {guest_port} of the machine: {answer}")]
    Forward { guest_port: u16, answer: String },
    #[error("the machine's daemon failed")]
    Guest(#[from] GuestError),
}

impl MachineError {
    /// An error about a file of the state directory, told apart from a full disk.
    pub(crate) fn state(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        if source.kind() == io::ErrorKind::StorageFull {
            Self::DiskFull { path }
        } else {
            Self::State {
                action,
                path,
                source,
            }
        }
    }

    /// Finds the cause that the user can do something about in what QEMU said.
    pub(crate) fn of_qemu(output: String, name: &MachineName, mib: u32, port: u16) -> Self {
        if output.contains(RULE_REFUSED) {
            Self::PortTaken { port }
        } else if output.contains("Cannot allocate memory")
            || output.contains("cannot set up guest memory")
        {
            Self::OutOfMemory { mib }
        } else if output.contains("Failed to get \"write\" lock") {
            Self::DiskInUse { name: name.clone() }
        } else {
            Self::Qemu { output }
        }
    }
}

/// Adds to an I/O error what was tried and where.
pub(crate) trait AtPath<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, MachineError>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, MachineError> {
        self.map_err(|source| MachineError::state(action, path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_says_becomes_what_to_do() {
        let of = |text: &str| {
            MachineError::of_qemu(text.to_owned(), &MachineName::default(), 4096, 4711).to_string()
        };
        assert!(of("qemu: Could not set up host forwarding rule 'tcp:…'").contains("port 4711"));
        assert!(of("qemu: cannot set up guest memory 'pc.ram': …").contains("4096 MiB"));
        assert!(of("qemu: -device …: Failed to get \"write\" lock").contains("default"));
        assert!(of("qemu: what is -x?").contains("what is -x?"));
    }
}
