//! A directory tree that names from an archive cannot leave.
//!
//! Every name is resolved by the kernel with the tree's root as its `/`, as if in a chroot:
//! an absolute symbolic link or `..` in one leads at most to the root of the tree. What is
//! made, replaced or removed is then named by one component in a directory that is held open,
//! and never followed if it is a link.
//!
//! Source: openat2(2), `RESOLVE_IN_ROOT`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, mkdirat, openat, openat2,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::tarball::Problem;

/// How deep directories may lie: whoever removes the tree holds one descriptor for each.
pub(super) const MAX_DEPTH: u32 = 256;

/// The longest name in a directory, and the longest path, that Linux takes.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 4095;

/// How a directory is opened whose entries are wanted.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// A rename anywhere on the host may disturb the resolution of `..`, which the kernel then
/// leaves to us to repeat.
const TRIES: usize = 1000;

/// A name from an archive that was checked: relative, no `.` or `..`, no zero byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EntryPath(Vec<OsString>);

impl EntryPath {
    /// Checks `raw`. Leading slashes and `.` count for nothing.
    pub(super) fn new(raw: &[u8]) -> Result<Self, Problem> {
        if raw.is_empty() {
            return Err(Problem::NoName);
        }
        if raw.contains(&0) {
            return Err(Problem::ZeroByte);
        }
        if raw.len() > LONGEST_PATH {
            return Err(Problem::LongName);
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
        Ok(Self(components))
    }

    /// A name that is written in this program.
    pub(super) fn of_ours(text: &str) -> Self {
        let components = text.split('/').filter(|component| !component.is_empty());
        Self(components.map(OsString::from).collect())
    }

    /// Its last component, or nothing if it is the root itself.
    pub(super) fn name(&self) -> Option<&OsStr> {
        self.0.last().map(OsString::as_os_str)
    }

    fn parent(&self) -> &[OsString] {
        self.0.split_last().map_or(&[], |(_, parent)| parent)
    }
}

/// Where an entry lies: its directory, held open, and its name there.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    /// Inode number of the directory.
    pub(super) inode: u64,
    pub(super) name: OsString,
}

impl Place {
    /// What is there, links not followed. Nothing if there is nothing.
    pub(super) fn stat(&self) -> io::Result<Option<Stat>> {
        match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens the directory that is there, and no link to one.
    pub(super) fn open_directory(&self) -> io::Result<OwnedFd> {
        Ok(openat(
            &self.directory,
            &self.name,
            DIRECTORY | OFlags::NOFOLLOW,
            Mode::empty(),
        )?)
    }

    /// Makes a new file that nobody else can open.
    pub(super) fn create(&self) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(
            &self.directory,
            &self.name,
            flags,
            Mode::from_raw_mode(0o600),
        )?;
        Ok(File::from(file))
    }

    /// Removes what is there, a directory with all in it.
    pub(super) fn clear(&self) -> io::Result<()> {
        match self.stat()? {
            None => Ok(()),
            Some(stat) if is_directory(&stat) => {
                remove_if(self.directory.as_fd(), &self.name, &mut |_, _| false).map(drop)
            }
            Some(_) => Ok(unlinkat(&self.directory, &self.name, AtFlags::empty())?),
        }
    }
}

/// Why a place was not found.
#[derive(Debug)]
pub(super) enum PlaceError {
    Problem(Problem),
    Io(io::Error),
}

impl<E: Into<io::Error>> From<E> for PlaceError {
    fn from(error: E) -> Self {
        Self::Io(error.into())
    }
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// How deep each directory lies that was made here, by inode number.
    depths: RefCell<HashMap<u64, u32>>,
}

impl Tree {
    /// The tree in the directory `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            root: openat(CWD, path, flags, Mode::empty())?,
            depths: RefCell::default(),
        })
    }

    /// The place of `path`, with the directories above it made where they are missing.
    /// Nothing if it is the root itself.
    pub(super) fn place(&self, path: &EntryPath) -> Result<Option<Place>, PlaceError> {
        match self.existing_place(path) {
            Err(PlaceError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                self.make_parents(path)?;
                self.existing_place(path)
            }
            other => other,
        }
    }

    /// As [`Self::place`], but a missing directory above it is an error of the kind
    /// `NotFound`.
    pub(super) fn existing_place(&self, path: &EntryPath) -> Result<Option<Place>, PlaceError> {
        let Some(name) = path.name() else {
            return Ok(None);
        };
        let directory = self.directory(path.parent())?;
        let inode = rustix::fs::fstat(&directory)?.st_ino;
        Ok(Some(Place {
            directory,
            inode,
            name: name.to_owned(),
        }))
    }

    /// Makes a directory unless there is one.
    pub(super) fn make_directory(&self, place: &Place) -> Result<(), PlaceError> {
        if let Some(stat) = place.stat()? {
            if is_directory(&stat) {
                return Ok(());
            }
            place.clear()?;
        }
        let mut depths = self.depths.borrow_mut();
        let depth = depths.get(&place.inode).copied().unwrap_or_default() + 1;
        if depth > MAX_DEPTH {
            return Err(PlaceError::Problem(Problem::TooDeep));
        }
        mkdirat(&place.directory, &place.name, Mode::from_raw_mode(0o755))?;
        if let Some(stat) = place.stat()? {
            depths.insert(stat.st_ino, depth);
        }
        Ok(())
    }

    /// Opens a file for reading, following links inside of the tree. Only a regular file is
    /// opened: a named pipe would wait for ever.
    pub(super) fn open_file(&self, path: &EntryPath) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = self.resolve(&joined(&path.0), flags)?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(File::from(file))
    }

    /// Whether there is a directory of this name, links inside of the tree followed.
    pub(super) fn has_directory(&self, path: &EntryPath) -> bool {
        self.directory(&path.0).is_ok()
    }

    fn make_parents(&self, path: &EntryPath) -> Result<(), PlaceError> {
        for end in 1..=path.parent().len() {
            let above = EntryPath(path.0[..end].to_vec());
            match self.directory(&above.0) {
                Ok(_) => {}
                Err(PlaceError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                    if let Some(place) = self.existing_place(&above)? {
                        // A link that leads nowhere is there, yet is no directory.
                        if place.stat()?.is_some() {
                            return Err(PlaceError::Problem(Problem::NotBelowDirectory));
                        }
                        self.make_directory(&place)?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn directory(&self, components: &[OsString]) -> Result<OwnedFd, PlaceError> {
        self.resolve(&joined(components), DIRECTORY)
            .map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::NOTDIR | Errno::LOOP) => {
                    PlaceError::Problem(Problem::NotBelowDirectory)
                }
                Some(Errno::NAMETOOLONG) => PlaceError::Problem(Problem::LongName),
                _ => PlaceError::Io(error),
            })
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for _ in 1..TRIES {
            match openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Ok(openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }
}

fn joined(components: &[OsString]) -> PathBuf {
    if components.is_empty() {
        PathBuf::from(".")
    } else {
        components.iter().collect()
    }
}

pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Removes the directory `name` in `parent`, but what `keep` wants, by the inode number of
/// the directory that it lies in and its name, and the directories above that. Says whether
/// anything stayed.
pub(super) fn remove_if(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    keep: &mut dyn FnMut(u64, &OsStr) -> bool,
) -> io::Result<bool> {
    let directory = openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let stayed = empty_if(&directory, keep)?;
    if !stayed {
        unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    }
    Ok(stayed)
}

/// Removes what lies in `directory`, but what `keep` wants. Says whether anything stayed.
pub(super) fn empty_if(
    directory: &OwnedFd,
    keep: &mut dyn FnMut(u64, &OsStr) -> bool,
) -> io::Result<bool> {
    let inode = rustix::fs::fstat(directory)?.st_ino;
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    let mut stayed = false;
    for name in names {
        let kept = keep(inode, &name);
        let stat = statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_directory(&stat) {
            if !kept {
                unlinkat(directory, &name, AtFlags::empty())?;
            }
            stayed |= kept;
        } else if kept {
            // A directory that is kept may still hold what is not.
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            empty_if(&openat(directory, &name, flags, Mode::empty())?, keep)?;
            stayed = true;
        } else {
            stayed |= remove_if(directory.as_fd(), &name, keep)?;
        }
    }
    Ok(stayed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let path = EntryPath::new(b"//usr/./bin/").unwrap();
        assert_eq!(path.0, ["usr", "bin"]);
        assert!(EntryPath::new(b"./").unwrap().name().is_none());
        for (raw, problem) in [
            (&b""[..], Problem::NoName),
            (b"..", Problem::Escapes),
            (b"a/../b", Problem::Escapes),
            (b"a\0b", Problem::ZeroByte),
            (&[b'a'; 256], Problem::LongName),
            (&b"a/".repeat(2100), Problem::LongName),
        ] {
            assert_eq!(EntryPath::new(raw), Err(problem));
        }
        assert!(EntryPath::new(b"..a/...").is_ok());
    }

    #[test]
    fn links_lead_at_most_to_the_root_of_the_tree() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("inside")).unwrap();
        std::fs::write(directory.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../../..", root.join("up")).unwrap();
        std::os::unix::fs::symlink("/inside", root.join("absolute")).unwrap();
        let tree = Tree::open(&root).unwrap();
        let path = |text: &str| EntryPath::new(text.as_bytes()).unwrap();
        assert!(tree.has_directory(&path("up/inside")));
        assert!(tree.has_directory(&path("absolute")));
        assert!(tree.open_file(&path("up/secret")).is_err());
        assert!(tree.open_file(&path("inside")).is_err());
    }
}
