//! Network namespaces: making, naming, entering and removing them.
//!
//! A namespace is a property of a thread, so everything here that changes one must run
//! on a thread that ends with the work, never on one that an async runtime lends out.
//! The name is a file in [`DIRECTORY`] over which the namespace is mounted, as `ip netns`
//! does it, so that `ip netns exec wrenn-7 …` works.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::plan::SlotNumber;

/// Where named network namespaces are.
pub(super) const DIRECTORY: &str = "/run/netns";

/// The calling thread's own network namespace.
const OF_THREAD: &str = "/proc/thread-self/ns/net";

/// Why a namespace could not be made, entered, named or removed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum NamespaceError {
    #[error("cannot open this thread's network namespace")]
    Current {
        #[source]
        source: io::Error,
    },
    #[error("cannot enter a network namespace (not root?)")]
    Enter {
        #[source]
        source: io::Error,
    },
    #[error("cannot make a network namespace (not root?)")]
    Unshare {
        #[source]
        source: io::Error,
    },
    #[error("cannot prepare {DIRECTORY} for named namespaces")]
    Directory {
        #[source]
        source: io::Error,
    },
    #[error("cannot give a network namespace the name {path}", path = path.display())]
    Pin {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove the named network namespace {path}", path = path.display())]
    Unpin {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {value} to {path}", path = path.display())]
    Setting {
        path: PathBuf,
        value: &'static str,
        #[source]
        source: io::Error,
    },
}

impl NamespaceError {
    /// Whether the name is in use.
    pub(super) fn already_there(&self) -> bool {
        matches!(self, Self::Pin { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    }
}

/// Where a slot's namespace is named.
pub(super) fn path_of(slot: SlotNumber) -> PathBuf {
    Path::new(DIRECTORY).join(slot.name())
}

/// The calling thread's network namespace.
pub(super) fn current() -> Result<OwnedFd, NamespaceError> {
    match File::open(OF_THREAD) {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(NamespaceError::Current { source }),
    }
}

/// Moves the calling thread into a network namespace.
pub(super) fn enter(namespace: impl AsFd) -> Result<(), NamespaceError> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| NamespaceError::Enter {
        source: errno.into(),
    })
}

/// Moves the calling thread into a new network namespace.
pub(super) fn enter_new() -> Result<OwnedFd, NamespaceError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NamespaceError::Unshare {
        source: errno.into(),
    })?;
    current()
}

/// By what a namespace can be told from others while it lives.
pub(super) fn inode(namespace: &OwnedFd) -> Result<u64, NamespaceError> {
    nix::sys::stat::fstat(namespace)
        .map(|status| status.st_ino)
        .map_err(|errno| NamespaceError::Current {
            source: errno.into(),
        })
}

/// Gives the calling thread's namespace a name.
pub(super) fn pin(path: &Path) -> Result<(), NamespaceError> {
    let failed = |source| NamespaceError::Pin {
        path: path.to_owned(),
        source,
    };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .map_err(failed)?;
    let none = None::<&str>;
    mount(Some(OF_THREAD), path, none, MsFlags::MS_BIND, none).map_err(|errno| {
        // Nothing is mounted, so the file alone would only be in somebody's way.
        let _gone_or_left_for_the_sweep = fs::remove_file(path);
        failed(errno.into())
    })
}

/// What is behind a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pinned {
    Nothing,
    /// A plain file over which nothing is mounted: its maker died in between.
    Empty,
    /// A namespace with this inode.
    Namespace(u64),
}

/// Looks what is behind a name.
pub(super) fn pinned(path: &Path) -> io::Result<Pinned> {
    match statfs(path) {
        Ok(status) if status.filesystem_type() == NSFS_MAGIC => {
            Ok(Pinned::Namespace(fs::metadata(path)?.ino()))
        }
        Ok(_) => Ok(Pinned::Empty),
        Err(Errno::ENOENT) => Ok(Pinned::Nothing),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes a name away. The namespace ends when nobody is in it any more.
pub(super) fn unpin(path: &Path) -> Result<(), NamespaceError> {
    let failed = |source| NamespaceError::Unpin {
        path: path.to_owned(),
        source,
    };
    match umount2(path, MntFlags::MNT_DETACH) {
        // Nothing mounted there, or nothing there at all.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// The slots that have a named namespace.
pub(super) fn list() -> io::Result<Vec<SlotNumber>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut slots = Vec::new();
    for entry in entries {
        slots.extend(entry?.file_name().to_str().and_then(SlotNumber::from_name));
    }
    slots.sort_unstable();
    Ok(slots)
}

/// Makes the directory a shared mount of its own, exactly as `ip netns add` does before
/// its first namespace. Were that left to a later `ip netns add`, it would mount the
/// directory over itself with our namespaces inside, and removing them would only take
/// away the upper copy.
pub(super) fn prepare_directory() -> Result<(), NamespaceError> {
    share_directory().map_err(|source| NamespaceError::Directory { source })
}

fn share_directory() -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let none = None::<&str>;
    let share = || {
        mount(
            none,
            DIRECTORY,
            none,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            none,
        )
    };
    if share().is_ok() {
        return Ok(());
    }
    // `ip` holds the same lock on the directory while it does this.
    let directory = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| io::Error::from(errno))?;
    if share().is_err() {
        mount(
            Some(DIRECTORY),
            DIRECTORY,
            none,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            none,
        )?;
        share()?;
    }
    drop(directory);
    Ok(())
}

/// Writes a setting of the calling thread's network namespace, such as
/// `ipv4/ip_forward`. With `optional`, a setting that this kernel doesn't have is fine.
pub(super) fn set(name: &str, value: &'static str, optional: bool) -> Result<(), NamespaceError> {
    let path = Path::new("/proc/sys/net").join(name);
    let written = OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(NamespaceError::Setting {
            path,
            value,
            source,
        }),
        Ok(()) => Ok(()),
    }
}

/// Whether a setting of the calling thread's network namespace has this value.
pub(super) fn is_set(name: &str, value: &str) -> bool {
    fs::read_to_string(Path::new("/proc/sys/net").join(name))
        .is_ok_and(|present| present.trim() == value)
}
