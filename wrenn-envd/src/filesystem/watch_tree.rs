//! Which directories a watch covers, and what one event of the kernel means for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use wrenn_proto::filesystem::{EventType, FilesystemEvent};

use super::entry::describe;
use super::watch::{Target, WatchError};
use crate::files::staging::Staged;
use crate::users::Names;

/// File systems on which changes are made elsewhere, statfs(2).
const NETWORK_FILE_SYSTEMS: [i64; 6] = [
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x6573_5546, // FUSE
    0x0102_1997, // 9P
    0x00c3_6400, // CEPH
];

/// The directories of a watch, by the kernel's number for each.
#[derive(Debug)]
pub struct WatchTree {
    inotify: OwnedFd,
    target: Target,
    /// Paths relative to the watched one; its own is empty.
    directories: HashMap<i32, PathBuf>,
    /// Announced when their directory was found, and perhaps announced by the kernel too.
    announced: HashSet<PathBuf>,
    /// An upload that left its staging name and is about to show up under its own.
    arriving: Option<(u32, Staged)>,
}

impl WatchTree {
    /// Watches the target and, if asked for, everything below it.
    pub fn open(target: Target) -> Result<Self, WatchError> {
        let path = target.path.clone();
        let open = |source: io::Error| WatchError::Open {
            path: path.clone(),
            source,
        };
        if !fs::metadata(&path).map_err(open)?.is_dir() {
            return Err(WatchError::NotADirectory { path });
        }
        let kind = rustix::fs::statfs(&path)
            .map_err(|error| open(error.into()))?
            .f_type;
        #[allow(
            clippy::useless_conversion,
            reason = "the width of f_type is the platform's"
        )]
        if !target.allow_network_mounts && NETWORK_FILE_SYSTEMS.contains(&i64::from(kind)) {
            return Err(WatchError::NetworkMount { path });
        }
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(|error| WatchError::Inotify(error.into()))?;
        let mut tree = Self {
            inotify,
            target,
            directories: HashMap::new(),
            announced: HashSet::new(),
            arriving: None,
        };
        tree.add(PathBuf::new(), None)?;
        Ok(tree)
    }

    /// A second descriptor of the kernel's queue, to read from.
    pub(super) fn inotify(&self) -> Result<OwnedFd, WatchError> {
        self.inotify.try_clone().map_err(WatchError::Inotify)
    }

    /// Watches a directory, and with `recursive` those below. With `announce`, what is
    /// found there is told as created.
    fn add(
        &mut self,
        relative: PathBuf,
        mut announce: Option<&mut VecDeque<FilesystemEvent>>,
    ) -> Result<(), WatchError> {
        let mut pending = vec![relative];
        while let Some(relative) = pending.pop() {
            let path = self.target.path.join(&relative);
            let flags = WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MODIFY
                | WatchFlags::MOVED_FROM
                | WatchFlags::MOVED_TO
                | WatchFlags::ATTRIB
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONLYDIR;
            match inotify::add_watch(&self.inotify, &path, flags) {
                Ok(watch) => self.directories.insert(watch, relative.clone()),
                Err(rustix::io::Errno::NOSPC) => return Err(WatchError::TooMany { path }),
                Err(error) if relative.as_os_str().is_empty() => {
                    return Err(WatchError::Open {
                        path,
                        source: error.into(),
                    });
                }
                // It came and went.
                Err(_) => continue,
            };
            if !self.target.recursive {
                continue;
            }
            for child in fs::read_dir(&path).into_iter().flatten().flatten() {
                let child_relative = relative.join(child.file_name());
                if child.file_type().is_ok_and(|file_type| file_type.is_dir()) {
                    pending.push(child_relative.clone());
                }
                if let Some(queue) = announce.as_deref_mut()
                    && Staged::parse(&child.file_name()).is_none()
                {
                    queue.push_back(self.event(&child_relative, EventType::Create));
                    self.announced.insert(child_relative);
                }
            }
        }
        Ok(())
    }

    /// Stops watching a directory that was moved away, with all below.
    fn forget(&mut self, relative: &Path) {
        let gone: Vec<i32> = self
            .directories
            .iter()
            .filter(|(_, path)| path.starts_with(relative))
            .map(|(watch, _)| *watch)
            .collect();
        for watch in gone {
            self.directories.remove(&watch);
            // It may have been deleted meanwhile, and its watch with it.
            inotify::remove_watch(&self.inotify, watch).ok();
        }
    }

    /// Turns one event of the kernel into what a client hears.
    pub(super) fn note(
        &mut self,
        watch: i32,
        what: ReadFlags,
        cookie: u32,
        name: Option<&[u8]>,
        queue: &mut VecDeque<FilesystemEvent>,
    ) -> Result<(), WatchError> {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Err(WatchError::Overflow);
        }
        if what.contains(ReadFlags::IGNORED) {
            self.directories.remove(&watch);
            return Ok(());
        }
        let Some(directory) = self.directories.get(&watch).cloned() else {
            return Ok(());
        };
        let Some(name) = name.map(OsStr::from_bytes) else {
            // About the directory itself; all but the top one are told by their parent.
            if directory.as_os_str().is_empty() {
                if what.contains(ReadFlags::DELETE_SELF) {
                    queue.push_back(self.event(Path::new("."), EventType::Remove));
                } else if what.contains(ReadFlags::MOVE_SELF) {
                    queue.push_back(self.event(Path::new("."), EventType::Rename));
                }
            }
            return Ok(());
        };
        if let Some(staged) = Staged::parse(name) {
            if what.contains(ReadFlags::MOVED_FROM) {
                self.arriving = Some((cookie, staged));
            }
            return Ok(());
        }
        let path = directory.join(name);
        let is_directory = what.contains(ReadFlags::ISDIR);
        if what.contains(ReadFlags::CREATE) {
            if !self.announced.remove(&path) {
                queue.push_back(self.event(&path, EventType::Create));
            }
            if is_directory && self.target.recursive {
                self.add(path, Some(queue))?;
            }
        } else if what.contains(ReadFlags::MOVED_TO) {
            match self.arriving.take() {
                Some((expected, staged)) if expected == cookie => {
                    if staged == Staged::New {
                        queue.push_back(self.event(&path, EventType::Create));
                    }
                    // Its owner was set before its contents came.
                    queue.push_back(self.event(&path, EventType::Chmod));
                    queue.push_back(self.event(&path, EventType::Write));
                }
                _ => queue.push_back(self.event(&path, EventType::Create)),
            }
            if is_directory && self.target.recursive {
                self.add(path, None)?;
            }
        } else if what.contains(ReadFlags::MOVED_FROM) {
            queue.push_back(self.event(&path, EventType::Rename));
            if is_directory {
                self.forget(&path);
            }
        } else if what.contains(ReadFlags::DELETE) {
            self.announced.remove(&path);
            queue.push_back(self.event(&path, EventType::Remove));
        } else if what.contains(ReadFlags::MODIFY) {
            queue.push_back(self.event(&path, EventType::Write));
        } else if what.contains(ReadFlags::ATTRIB) {
            queue.push_back(self.event(&path, EventType::Chmod));
        }
        Ok(())
    }

    fn event(&self, relative: &Path, kind: EventType) -> FilesystemEvent {
        let entry = if self.target.include_entry {
            // Gone already, perhaps; the event is true all the same.
            describe(&self.target.path.join(relative), &Names::load()).ok()
        } else {
            None
        };
        FilesystemEvent {
            name: relative.to_string_lossy().into_owned(),
            r#type: kind.into(),
            entry: entry.into(),
        }
    }
}
