//! From a tar archive to a tree that the archive's names cannot leave.
//!
//! Every name is walked from the directory's own descriptor, one component after another, by
//! openat2(2) with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`. So a directory that an entry
//! lies in is one of the tree. A symbolic link is made as it is, wherever it leads, and never
//! followed: an entry below one is refused, and one of the same name replaces it. A Python
//! environment has links to `/usr/bin`, and links that lead nowhere yet are nothing strange.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, linkat, mkdirat,
    openat, openat2, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::reader::{Entry, ReadError, TarReader};
use crate::files::staging::Staged;
use crate::filesystem::ownership;
use crate::reply::HttpError;
use crate::users::User;

/// `NAME_MAX` and `PATH_MAX` of Linux.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 4095;
/// How often the kernel may ask to resolve a name again, since something was renamed.
const TRIES: usize = 1000;
/// The size in which files are written.
const CHUNK: usize = 256 * 1024;

/// Why one entry is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("has no name")]
    NoName,
    #[error("has an absolute name")]
    Absolute,
    #[error("leads out of the directory by '..'")]
    Escapes,
    #[error("has a name with a zero byte")]
    ZeroByte,
    #[error("has a name that is longer than a file system takes")]
    LongName,
    #[error("lies below something that is no directory, or a link")]
    NotBelowDirectory,
    #[error("is a hard link that leads out of the directory")]
    LinkEscapes,
    #[error("is a link to nothing")]
    LinkToNothing,
    #[error("is a hard link to something that is no file of the directory")]
    NoLinkTarget,
    #[error("is a device or a pipe")]
    Device,
    #[error("is stored in a way that is not supported; pack it without sparse files")]
    Unsupported,
    #[error("is a directory in one place and none in the other")]
    IsDirectory,
}

/// Why an archive was not unpacked to its end.
#[derive(Debug)]
enum Failure {
    Read(ReadError),
    Entry(Problem),
    Write(io::Error),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Entry(problem)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Write(errno.into())
    }
}

/// Unpacks the archive into the directory, where all of it belongs to the user. Says how many
/// entries there were.
pub(super) fn unpack(root: OwnedFd, user: &User, archive: impl Read) -> Result<u64, HttpError> {
    let mut reader = TarReader::new(archive);
    let mut tree = Tree {
        root,
        user,
        last: None,
    };
    let mut entries = 0;
    let unreadable = |error: ReadError| match &error {
        ReadError::Io(source) => HttpError::bad_request(format!("{error}: {source}")),
        _ => HttpError::bad_request(error.to_string()),
    };
    while let Some(entry) = reader.next().map_err(unreadable)? {
        match tree.place(&entry, &mut reader) {
            Ok(()) => entries += 1,
            Err(Failure::Read(error)) => return Err(unreadable(error)),
            Err(Failure::Entry(problem)) => {
                let name = shown(&entry.path);
                return Err(HttpError::bad_request(format!(
                    "the entry '{name}' of the archive {problem}"
                )));
            }
            Err(Failure::Write(error)) => {
                let what = format!("cannot write '{}'", shown(&entry.path));
                return Err(HttpError::from_io(&what, &error));
            }
        }
    }
    reader.drain().map_err(unreadable)?;
    Ok(entries)
}

/// A name as it can be shown to a person, cut where it is absurd.
fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 200;
    let name = name.get(..LONGEST).unwrap_or(name);
    String::from_utf8_lossy(name).escape_debug().to_string()
}

struct Tree<'a> {
    root: OwnedFd,
    user: &'a User,
    /// The directory that was used last: entries come one directory after another.
    last: Option<(Vec<OsString>, OwnedFd)>,
}

impl Tree<'_> {
    fn place(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), Failure> {
        let path = components(&entry.path)?;
        let Some((name, above)) = path.split_last() else {
            // The directory itself, which is as it is.
            return match entry.kind {
                EntryType::Directory => Ok(()),
                _ => Err(Problem::NoName.into()),
            };
        };
        // Everything that the entry says is checked before anything is made for it.
        match entry.kind {
            EntryType::Regular | EntryType::Directory => {}
            EntryType::Symlink => check_target(&entry.link)?,
            EntryType::Link => {
                components(&entry.link).map_err(|_| Problem::LinkEscapes)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return Err(Problem::Device.into());
            }
            _ => return Err(Problem::Unsupported.into()),
        }
        // One descriptor for the length of the entry.
        let directory = self.directory(above)?;
        let made = match entry.kind {
            EntryType::Directory => self.make_directory(&directory, name, entry),
            EntryType::Symlink => self.replace(&directory, name, |aside| {
                let target = OsStr::from_bytes(&entry.link);
                symlinkat(target, &directory, aside)?;
                Ok(self.give(&directory, aside)?)
            }),
            EntryType::Link => self.link(&directory, name, entry),
            _ => self.file(&directory, name, entry, data),
        };
        self.last = Some((above.to_vec(), directory));
        made
    }

    /// The directory of these components, made where it is missing.
    fn directory(&mut self, components: &[OsString]) -> Result<OwnedFd, Failure> {
        if let Some((known, directory)) = self.last.take()
            && known == components
        {
            return Ok(directory);
        }
        let mut directory = self.root.try_clone().map_err(Failure::Write)?;
        for component in components {
            directory = match beneath(&directory, component) {
                Err(Errno::NOENT) => {
                    match mkdirat(&directory, component, Mode::from_raw_mode(0o755)) {
                        Ok(()) => self.give(&directory, component)?,
                        // Somebody else was faster.
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    beneath(&directory, component)
                }
                found => found,
            }
            .map_err(not_below)?;
        }
        Ok(directory)
    }

    fn make_directory(
        &self,
        directory: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), Failure> {
        match mkdirat(directory, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => self.give(directory, name)?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = match openat(directory, name, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(Problem::IsDirectory.into()),
            opened => opened?,
        };
        // Its owner must be able to fill it.
        let mode = if ownership::may_give() {
            entry.mode
        } else {
            entry.mode | 0o700
        };
        Ok(fchmod(&made, Mode::from_raw_mode(mode))?)
    }

    fn file(
        &self,
        directory: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
        data: &mut impl Read,
    ) -> Result<(), Failure> {
        self.replace(directory, name, |aside| {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(directory, aside, flags, Mode::from_raw_mode(0o600))?;
            let mut file = File::from(file);
            let mut buffer = vec![0; CHUNK];
            loop {
                let count = match data.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) => return Err(Failure::Read(super::reader::read_error(error))),
                };
                file.write_all(&buffer[..count]).map_err(Failure::Write)?;
            }
            ownership::give_file(&file, self.user).map_err(Failure::Write)?;
            fchmod(&file, Mode::from_raw_mode(entry.mode))?;
            if let Some(time) = UNIX_EPOCH.checked_add(Duration::from_secs(entry.modified)) {
                // A time that the file system does not have is no reason to refuse a file.
                file.set_modified(time).ok();
            }
            Ok(())
        })
    }

    fn link(&mut self, directory: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<(), Failure> {
        let target = components(&entry.link).map_err(|_| Problem::LinkEscapes)?;
        let (target_name, above) = target.split_last().ok_or(Problem::NoLinkTarget)?;
        let missing = |errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => {
                Failure::Entry(Problem::NoLinkTarget)
            }
            errno => errno.into(),
        };
        let mut beside = self.root.try_clone().map_err(Failure::Write)?;
        for component in above {
            beside = beneath(&beside, component).map_err(missing)?;
        }
        let stat = statat(&beside, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(missing)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Problem::NoLinkTarget.into());
        }
        self.replace(directory, name, |aside| {
            Ok(linkat(
                &beside,
                target_name,
                directory,
                aside,
                AtFlags::empty(),
            )?)
        })
    }

    /// Makes something under another name and puts it in place, whatever is there but a
    /// directory. A failure leaves no file.
    fn replace(
        &self,
        directory: &OwnedFd,
        name: &OsStr,
        make: impl FnOnce(&OsStr) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let old = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let aside = OsString::from(Staged::name(old.is_ok()));
        let placed =
            make(&aside).and_then(|()| match renameat(directory, &aside, directory, name) {
                Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                    Err(Problem::IsDirectory.into())
                }
                renamed => Ok(renamed?),
            });
        // A rename between two names of one file does nothing, and leaves both.
        if placed.is_err() || statat(directory, &aside, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            unlinkat(directory, &aside, AtFlags::empty()).ok();
        }
        placed
    }

    /// Gives what was just made to the user.
    fn give(&self, directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
        if !ownership::may_give() {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        chownat(directory, name, Some(uid), Some(gid), flags)
    }
}

/// The directory of one name in another, which is no link.
fn beneath(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 1..TRIES {
        match openat2(directory.as_fd(), name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    openat2(directory.as_fd(), name, flags, Mode::empty(), resolve)
}

fn not_below(errno: Errno) -> Failure {
    match errno {
        Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Problem::NotBelowDirectory.into(),
        errno => errno.into(),
    }
}

/// The components of a name that stays in its directory; none for the directory itself.
fn components(raw: &[u8]) -> Result<Vec<OsString>, Problem> {
    if raw.is_empty() {
        return Err(Problem::NoName);
    }
    if raw.contains(&0) {
        return Err(Problem::ZeroByte);
    }
    if raw.len() > LONGEST_PATH {
        return Err(Problem::LongName);
    }
    if raw.starts_with(b"/") {
        return Err(Problem::Absolute);
    }
    let mut components = Vec::new();
    for component in raw.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(Problem::Escapes),
            _ if component.len() > LONGEST_NAME => return Err(Problem::LongName),
            _ => components.push(OsString::from_vec(component.to_vec())),
        }
    }
    Ok(components)
}

/// Whether there can be a symbolic link to this. Where it leads is nothing to the unpacking,
/// which follows none.
fn check_target(target: &[u8]) -> Result<(), Problem> {
    if target.is_empty() {
        return Err(Problem::LinkToNothing);
    }
    if target.contains(&0) {
        return Err(Problem::ZeroByte);
    }
    if target.len() > LONGEST_PATH {
        return Err(Problem::LongName);
    }
    Ok(())
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
