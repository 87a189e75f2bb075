//! Where an entry goes: resolved from the target's descriptor, one directory at a time, and
//! through no link, be it of this archive or one that was there before.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::ArchiveError;

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::RDONLY)
    .union(OFlags::CLOEXEC);

/// The parts of a name that stays in the target.
pub(super) type Parts = Vec<OsString>;

/// Takes a name apart. A name that is absolute or has `..` is refused.
pub(super) fn parts(name: &[u8]) -> Result<Parts, ArchiveError> {
    let leads_out = || ArchiveError::LeadsOut {
        name: String::from_utf8_lossy(name).into_owned(),
    };
    if name.starts_with(b"/") || name.contains(&0) {
        return Err(leads_out());
    }
    let mut parts = Parts::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(leads_out()),
            part => parts.push(OsStr::from_bytes(part).to_owned()),
        }
    }
    Ok(parts)
}

/// Whether a symbolic link in a directory of this depth stays in the target. After its first
/// name it must not go up: what that name is may change.
pub(super) fn stays_inside(target: &[u8], depth: usize) -> bool {
    if target.starts_with(b"/") || target.is_empty() {
        return false;
    }
    let mut parts = target
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .peekable();
    let mut up = 0;
    while parts.next_if_eq(&&b".."[..]).is_some() {
        up += 1;
    }
    up <= depth && parts.all(|part| part != b"..")
}

/// The directory that everything goes to.
#[derive(Debug)]
pub(super) struct Target {
    root: OwnedFd,
    /// The directory of the last entry, which is mostly that of the next.
    last: Option<(Parts, OwnedFd)>,
}

impl Target {
    /// Opens the target, and makes it if need be. Its own path may lead through links.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self {
            root: File::open(path)?.into(),
            last: None,
        })
    }

    /// The directory with this name, made if need be.
    pub(super) fn directory(&mut self, parts: &[OsString]) -> Result<OwnedFd, Errno> {
        if let Some((last, directory)) = &self.last
            && last == parts
        {
            return directory.try_clone().map_err(|_| Errno::MFILE);
        }
        let mut directory = self.root.try_clone().map_err(|_| Errno::MFILE)?;
        for part in parts {
            directory = match rustix::fs::openat(&directory, part, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&directory, part, Mode::from_raw_mode(0o777))?;
                    rustix::fs::openat(&directory, part, DIRECTORY, Mode::empty())?
                }
                opened => opened?,
            };
        }
        let kept = directory.try_clone().map_err(|_| Errno::MFILE)?;
        self.last = Some((parts.to_vec(), kept));
        Ok(directory)
    }

    /// Opens a directory that is there.
    pub(super) fn existing(&self, parts: &[OsString]) -> Result<OwnedFd, Errno> {
        let mut directory = self.root.try_clone().map_err(|_| Errno::MFILE)?;
        for part in parts {
            directory = rustix::fs::openat(&directory, part, DIRECTORY, Mode::empty())?;
        }
        Ok(directory)
    }
}

/// Atomically replaces `name` by what `make` makes under a temporary name.
pub(super) fn replace<T>(
    directory: impl AsFd,
    name: &OsStr,
    make: impl FnOnce(&OsStr) -> io::Result<T>,
) -> io::Result<T> {
    let directory = directory.as_fd();
    let temporary = OsString::from(format!(".wrenn-{:016x}", rand::random::<u64>()));
    let made = make(&temporary);
    let replaced = match &made {
        Ok(_) => rustix::fs::renameat(directory, &temporary, directory, name),
        Err(_) => Ok(()),
    };
    if made.is_err() || replaced.is_err() {
        // It may not have come to be.
        let _removed = rustix::fs::unlinkat(directory, &temporary, AtFlags::empty());
    }
    replaced?;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in [&b"/etc/passwd"[..], b"..", b"a/../../b", b"a/..", b"a\0b"] {
            assert!(parts(name).is_err(), "{name:?}");
        }
        assert_eq!(parts(b"./a//b/.").unwrap(), ["a", "b"]);
        assert!(parts(b"./").unwrap().is_empty());
    }

    #[test]
    fn links_that_lead_out_are_seen() {
        for (target, depth) in [
            (&b"/etc"[..], 5),
            (b"..", 0),
            (b"../..", 1),
            (b"a/..", 3),
            (b"./../x/../..", 9),
            (b"", 0),
        ] {
            assert!(!stays_inside(target, depth), "{target:?}");
        }
        for (target, depth) in [
            (&b"a/b"[..], 0),
            (b"../a", 1),
            (b"../../a/...", 2),
            (b"..a", 0),
        ] {
            assert!(stays_inside(target, depth), "{target:?}");
        }
    }
}
