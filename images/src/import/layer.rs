//! Puts the entries of archives into a tree: one archive, or layers over each other.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, fchmod,
    fsetxattr, futimens, linkat, symlinkat,
};

use super::limits::Budget;
use super::tarball::{ArchiveError, Entry, Kind, Problem, TarReader, read_error};
use super::tree::{EntryPath, Place, PlaceError, Tree, empty_if, is_directory};

/// How much is copied at once; a block of zeros of this size becomes a hole.
const CHUNK: usize = 64 << 10;

/// The longest target of a symbolic link that Linux takes.
const LONGEST_LINK: usize = 4095;

/// Starts the name of what a layer takes away from those below it.
const WHITEOUT: &[u8] = b".wh.";
/// In a directory of a layer: nothing of the layers below shows through.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other notes to itself of the file system that whiteouts come from.
const NOTE: &[u8] = b".wh..wh.";

/// Whether names that start with `.wh.` mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whiteouts {
    /// They take away what lies below: in the layers of an image.
    Meant,
    /// They are names like all others: in an archive of its own.
    Plain,
}

/// Puts all entries of the archive in `reader` into `tree`, and reads `reader` to its end.
pub(super) fn unpack<R: Read>(
    tree: &Tree,
    reader: R,
    whiteouts: Whiteouts,
    budget: &Budget,
) -> Result<(), ArchiveError> {
    let mut archive = TarReader::new(reader, budget);
    let mut layer = Layer {
        tree,
        whiteouts,
        own: HashSet::new(),
    };
    while let Some(entry) = archive.next()? {
        layer
            .put(&entry, &mut archive)
            .map_err(|error| match error {
                PutError::Problem(problem) => ArchiveError::Entry {
                    name: entry.name(),
                    problem,
                },
                PutError::Write(source) => ArchiveError::Write {
                    name: entry.name(),
                    source,
                },
                PutError::Archive(error) => error,
            })?;
    }
    archive.drain()
}

/// Why one entry was not put into the tree.
enum PutError {
    Problem(Problem),
    Write(io::Error),
    Archive(ArchiveError),
}

impl From<Problem> for PutError {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<PlaceError> for PutError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Problem(problem) => Self::Problem(problem),
            PlaceError::Io(error) => Self::Write(error),
        }
    }
}

impl From<io::Error> for PutError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<rustix::io::Errno> for PutError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Write(errno.into())
    }
}

struct Layer<'a> {
    tree: &'a Tree,
    whiteouts: Whiteouts,
    /// What this layer brought, by inode number of its directory and name: whiteouts take
    /// away only what came from below.
    own: HashSet<(u64, OsString)>,
}

impl Layer<'_> {
    fn put(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), PutError> {
        let path = EntryPath::new(&entry.path)?;
        let Some(name) = path.name() else {
            // The root belongs to root, whatever the archive says.
            return Ok(());
        };
        if self.whiteouts == Whiteouts::Meant && name.as_bytes().starts_with(WHITEOUT) {
            return self.take_away(&path, name);
        }
        if entry.kind == Kind::Special {
            // The guest finds its devices in /dev, which its kernel fills.
            return Ok(());
        }
        let owner = owner(entry)?;
        let Some(place) = self.tree.place(&path)? else {
            return Ok(());
        };
        match entry.kind {
            Kind::Directory => {
                self.tree.make_directory(&place)?;
                describe(place.open_directory()?, entry, owner)?;
            }
            Kind::File => {
                place.clear()?;
                let file = place.create()?;
                fill(&file, entry.size, data)?;
                describe(&file, entry, owner)?;
            }
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.len() > LONGEST_LINK {
                    return Err(Problem::BadLink.into());
                }
                place.clear()?;
                symlinkat(
                    OsStr::from_bytes(&entry.link),
                    &place.directory,
                    &place.name,
                )?;
                let (uid, gid) = owner;
                chownat(
                    &place.directory,
                    &place.name,
                    Some(uid),
                    Some(gid),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
            Kind::HardLink => self.link(entry, &place)?,
            Kind::Special => {}
        }
        self.own.insert((place.inode, place.name));
        Ok(())
    }

    fn link(&self, entry: &Entry, place: &Place) -> Result<(), PutError> {
        let target = EntryPath::new(&entry.link)?;
        let target = match self.tree.existing_place(&target) {
            Err(PlaceError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Problem::NoLinkTarget.into());
            }
            found => found?.ok_or(Problem::LinkToDirectory)?,
        };
        let stat = target.stat()?.ok_or(Problem::NoLinkTarget)?;
        if is_directory(&stat) {
            return Err(Problem::LinkToDirectory.into());
        }
        if target.inode == place.inode && target.name == place.name {
            return Ok(());
        }
        // Clearing the place may take the target with it, if it lies below.
        place.clear()?;
        match linkat(
            &target.directory,
            &target.name,
            &place.directory,
            &place.name,
            AtFlags::empty(),
        ) {
            Err(rustix::io::Errno::NOENT) => Err(Problem::NoLinkTarget.into()),
            other => Ok(other?),
        }
    }

    /// Removes what the whiteout at `path` hides.
    fn take_away(&mut self, path: &EntryPath, name: &OsStr) -> Result<(), PutError> {
        let mut place = match self.tree.existing_place(path) {
            // Nothing to take away from.
            Err(PlaceError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => match found? {
                Some(place) => place,
                None => return Ok(()),
            },
        };
        let own = &self.own;
        let mut keep = |inode: u64, name: &OsStr| own.contains(&(inode, name.to_owned()));
        if name.as_bytes() == OPAQUE {
            empty_if(&place.directory, &mut keep)?;
            return Ok(());
        }
        if name.as_bytes().starts_with(NOTE) {
            return Ok(());
        }
        let hidden = &name.as_bytes()[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Problem::BadWhiteout.into());
        }
        place.name = OsStr::from_bytes(hidden).to_owned();
        if !keep(place.inode, &place.name) {
            place.clear()?;
        }
        Ok(())
    }
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), Problem> {
    let number = |raw: u64| {
        // The last number means "leave as it is".
        u32::try_from(raw)
            .ok()
            .filter(|number| *number != u32::MAX)
            .ok_or(Problem::BadOwner)
    };
    Ok((
        Uid::from_raw(number(entry.uid)?),
        Gid::from_raw(number(entry.gid)?),
    ))
}

fn fill(mut file: &File, size: u64, data: &mut impl Read) -> Result<(), PutError> {
    let mut buffer = vec![0; CHUNK];
    let mut left = size;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
        let chunk = &mut buffer[..wanted];
        data.read_exact(chunk)
            .map_err(|error| PutError::Archive(read_error(error)))?;
        if chunk.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(wanted.cast_signed() as i64))?;
        } else {
            file.write_all(chunk)?;
        }
        left -= wanted as u64;
    }
    file.set_len(size)?;
    Ok(())
}

/// Sets owner, mode, extended attributes and time, in the order in which the kernel does
/// not undo any of them.
fn describe(file: impl AsFd, entry: &Entry, (uid, gid): (Uid, Gid)) -> Result<(), PutError> {
    rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    fchmod(&file, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        // All others are the host's own business: labels, access lists, overlay's notes.
        let wanted = name.starts_with(b"user.") || name == b"security.capability";
        if wanted && !name.contains(&0) {
            fsetxattr(&file, OsStr::from_bytes(name), value, XattrFlags::empty())?;
        }
    }
    let modified = Timespec {
        tv_sec: i64::from(u32::try_from(entry.modified).unwrap_or_default()),
        tv_nsec: 0,
    };
    let omitted = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access: omitted,
        last_modification: modified,
    };
    futimens(&file, &times)?;
    Ok(())
}
