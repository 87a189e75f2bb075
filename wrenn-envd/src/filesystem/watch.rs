//! Following changes under a directory, inotify(7).
//!
//! | the kernel says | a client hears |
//! |---|---|
//! | `IN_CREATE`, `IN_MOVED_TO` | CREATE of the new name |
//! | `IN_MODIFY` | WRITE |
//! | `IN_DELETE` | REMOVE |
//! | `IN_MOVED_FROM` | RENAME of the old name |
//! | `IN_ATTRIB` | CHMOD |
//! | an upload taking its place (see [`crate::files::staging`]) | CREATE if the name is new, then CHMOD and WRITE |
//!
//! The kernel watches single directories. A recursive watch adds one for every directory
//! below, and for each that appears later; what is found in it by then is announced as
//! CREATE, since it came before anybody watched.
//!
//! Events wait in the kernel's queue until a client takes them. When that overflows,
//! changes were missed, and the watch ends with an error rather than pretend.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::inotify;
use wrenn_proto::filesystem::FilesystemEvent;

use super::watch_tree::WatchTree;
use crate::sys::polled::Polled;

/// What to watch, and how.
#[derive(Debug, Clone)]
pub struct Target {
    pub path: PathBuf,
    pub recursive: bool,
    pub include_entry: bool,
    pub allow_network_mounts: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("'{path}' is not a directory")]
    NotADirectory { path: PathBuf },
    #[error(
        "'{path}' is on a network file system, where changes by other machines are not seen; \
         allow network mounts to watch it all the same"
    )]
    NetworkMount { path: PathBuf },
    #[error("too many directories are watched (fs.inotify.max_user_watches), at '{path}'")]
    TooMany { path: PathBuf },
    #[error("changes came faster than they were taken, and some were missed")]
    Overflow,
    #[error("cannot watch '{path}'")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use inotify")]
    Inotify(#[source] io::Error),
}

/// A watch that is under way.
#[derive(Debug)]
pub struct Watch {
    inotify: Arc<Polled>,
    tree: WatchTree,
    queue: VecDeque<FilesystemEvent>,
}

impl Watch {
    /// Must be called on the runtime.
    pub fn new(tree: WatchTree) -> Result<Self, WatchError> {
        let inotify = Polled::new(tree.inotify()?).map_err(WatchError::Inotify)?;
        Ok(Self {
            inotify: Arc::new(inotify),
            tree,
            queue: VecDeque::new(),
        })
    }

    /// To wait for changes without holding the watch.
    pub(super) fn notice(&self) -> Arc<Polled> {
        Arc::clone(&self.inotify)
    }

    /// The next change.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<FilesystemEvent, WatchError> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            let notice = self.notice();
            let mut ready = notice.readable().await.map_err(WatchError::Inotify)?;
            self.read()?;
            ready.clear_ready();
        }
    }

    /// Everything that has changed until now, in order, without waiting.
    pub(super) fn take(&mut self) -> Result<VecDeque<FilesystemEvent>, WatchError> {
        self.read()?;
        Ok(std::mem::take(&mut self.queue))
    }

    fn read(&mut self) -> Result<(), WatchError> {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = inotify::Reader::new(&*self.inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_bytes());
                    self.tree.note(
                        event.wd(),
                        event.events(),
                        event.cookie(),
                        name,
                        &mut self.queue,
                    )?;
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(WatchError::Inotify(error.into())),
            }
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
