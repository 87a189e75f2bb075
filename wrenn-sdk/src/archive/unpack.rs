//! An archive becomes a local directory. The archive is hostile: a guest made it.
//!
//! | entry | what happens |
//! |---|---|
//! | a name that is absolute or has `..`; below a file or link | error, the rest is not read |
//! | a symbolic link | made as it is and never followed; one that leads out of the target is reported, and left out where the caller wants that |
//! | a device, a pipe | left out, and reported |
//! | a sparse file | error: a short archive would fill the disk |
//! | set-user-ID, set-group-ID, owner | dropped |
//!
//! Links are kept as tar, git and rsync keep them: a Python environment is not one without its
//! links to `/usr/bin`. Nothing is written through one, of this archive or of an earlier one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::place::{Parts, Target, parts, replace, stays_inside};
use super::records::Extension;
use super::{ArchiveError, OutwardLinks, Skipped, Unpacked};

const MODE: u32 = 0o777;
/// Permissions that this program needs in a directory that it fills.
const FILLING: u32 = 0o700;
const COPY_BUFFER: usize = 128 << 10;

/// Unpacks an archive into `root`, which is made if need be.
pub(crate) fn unpack(
    reader: impl Read,
    root: &Path,
    outward_links: OutwardLinks,
    progress: impl FnMut(u64),
) -> Result<Unpacked, ArchiveError> {
    let target = Target::open(root).map_err(|source| ArchiveError::Write {
        name: root.to_string_lossy().into_owned(),
        source,
    })?;
    let mut unpacking = Unpacking {
        target,
        directories: Vec::new(),
        outward_links,
        unpacked: Unpacked::default(),
        progress,
        done: 0,
    };
    let mut archive = Archive::new(reader);
    // Raw: the limits on long names are ours.
    let entries = archive.entries().map_err(ArchiveError::Read)?.raw(true);
    let mut extension = Extension::default();
    let mut size = None;
    for entry in entries {
        let mut entry = entry.map_err(ArchiveError::Read)?;
        let length = entry.header().entry_size().map_err(ArchiveError::Read)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => extension.path = Some(Extension::name(&mut entry, length)?),
            EntryType::GNULongLink => extension.link = Some(Extension::name(&mut entry, length)?),
            EntryType::XHeader => {
                let records = Extension::read(&mut entry, length)?;
                extension.take_records(&records, &mut size)?;
            }
            EntryType::XGlobalHeader => {}
            _ => {
                // The reader below goes by the header.
                if size.take().is_some_and(|size| size != length) {
                    return Err(ArchiveError::BadExtension);
                }
                unpacking.put(&mut entry, std::mem::take(&mut extension))?;
            }
        }
    }
    unpacking.finish_directories()?;
    Ok(unpacking.unpacked)
}

struct Unpacking<P> {
    target: Target,
    /// With their modes, which are set at the end: one may forbid to write.
    directories: Vec<(Parts, u32)>,
    outward_links: OutwardLinks,
    unpacked: Unpacked,
    progress: P,
    done: u64,
}

impl<P: FnMut(u64)> Unpacking<P> {
    fn put<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        extension: Extension,
    ) -> Result<(), ArchiveError> {
        let name = extension
            .path
            .unwrap_or_else(|| entry.header().path_bytes().into_owned());
        let shown = || String::from_utf8_lossy(&name).into_owned();
        if extension.sparse || entry.header().entry_type() == EntryType::GNUSparse {
            return Err(ArchiveError::Sparse { name: shown() });
        }
        let parts = parts(&name)?;
        let mode = entry.header().mode().unwrap_or_default() & MODE;
        let Some((last, above)) = parts.split_last() else {
            // The target itself, whose mode is the caller's affair.
            return Ok(());
        };
        let refused = |error: io::Error| refused(shown(), error);
        let link = extension
            .link
            .or_else(|| {
                entry
                    .header()
                    .link_name_bytes()
                    .map(|link| link.into_owned())
            })
            .unwrap_or_default();
        match entry.header().entry_type() {
            EntryType::Directory => {
                let directory = self.target.directory(&parts);
                let directory = directory.map_err(|errno| refused(errno.into()))?;
                rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode | FILLING))
                    .map_err(|errno| refused(errno.into()))?;
                self.directories.push((parts, mode));
            }
            EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => {
                let directory = self.target.directory(&parts);
                directory.map_err(|errno| refused(errno.into()))?;
            }
            EntryType::Regular | EntryType::Continuous => {
                let directory = self.target.directory(above);
                let directory = directory.map_err(|errno| refused(errno.into()))?;
                let mut read = None;
                let written = replace(&directory, last, |temporary| {
                    self.write(entry, &directory, temporary, mode, &mut read)
                });
                if let Some(error) = read {
                    return Err(ArchiveError::Read(error));
                }
                written.map_err(refused)?;
            }
            EntryType::Symlink => {
                if link.is_empty() || link.contains(&0) {
                    self.skip(&name, "a link to nothing");
                    return Ok(());
                }
                let leads_out = !stays_inside(&link, above.len());
                if leads_out && self.outward_links == OutwardLinks::LeaveOut {
                    self.skip(&name, "a link that leads out of the target");
                    return Ok(());
                }
                let directory = self.target.directory(above);
                let directory = directory.map_err(|errno| refused(errno.into()))?;
                replace(&directory, last, |temporary| {
                    let link = OsStr::from_bytes(&link);
                    Ok(rustix::fs::symlinkat(link, &directory, temporary)?)
                })
                .map_err(refused)?;
                if leads_out {
                    self.unpacked.outward_links.push(shown());
                }
            }
            EntryType::Link => {
                let source = super::place::parts(&link)?;
                let (source_name, source_above) = source
                    .split_last()
                    .ok_or_else(|| ArchiveError::NoLinkTarget { name: shown() })?;
                let from = self
                    .target
                    .existing(source_above)
                    .map_err(|_| ArchiveError::NoLinkTarget { name: shown() })?;
                let directory = self.target.directory(above);
                let directory = directory.map_err(|errno| refused(errno.into()))?;
                replace(&directory, last, |temporary| {
                    let flags = AtFlags::empty();
                    rustix::fs::linkat(&from, source_name, &directory, temporary, flags)?;
                    Ok(())
                })
                .map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => ArchiveError::NoLinkTarget { name: shown() },
                    _ => refused(error),
                })?;
            }
            _ => self.skip(&name, "a device, pipe or something unknown"),
        }
        Ok(())
    }

    fn skip(&mut self, name: &[u8], reason: &'static str) {
        self.unpacked.skipped.push(Skipped::new(name, reason));
    }

    /// Writes the data of `entry`. An error of the archive goes to `read`.
    fn write<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        directory: &std::os::fd::OwnedFd,
        name: &OsStr,
        mode: u32,
        read: &mut Option<io::Error>,
    ) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory.as_fd(), name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        let size = entry.header().entry_size()?;
        let mut left = size;
        let mut buffer = vec![0; COPY_BUFFER];
        while left > 0 {
            let count = match entry.read(&mut buffer) {
                Ok(0) => {
                    *read = Some(io::ErrorKind::UnexpectedEof.into());
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let kind = error.kind();
                    *read = Some(error);
                    return Err(kind.into());
                }
            };
            io::Write::write_all(&mut file, &buffer[..count])?;
            left = left.saturating_sub(count as u64);
            self.done += count as u64;
            (self.progress)(self.done);
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        if let Some(at) = modified(entry) {
            rustix::fs::futimens(&file, &at)?;
        }
        Ok(())
    }

    fn finish_directories(&self) -> Result<(), ArchiveError> {
        // The innermost first, while those around it can be passed.
        for (parts, mode) in self.directories.iter().rev() {
            let set = self
                .target
                .existing(parts)
                .and_then(|directory| rustix::fs::fchmod(&directory, Mode::from_raw_mode(*mode)));
            set.map_err(|errno| {
                let name = parts.iter().map(|part| part.to_string_lossy());
                refused(name.collect::<Vec<_>>().join("/"), errno.into())
            })?;
        }
        Ok(())
    }
}

fn modified<R: Read>(entry: &Entry<'_, R>) -> Option<Timestamps> {
    let seconds = i64::try_from(entry.header().mtime().ok()?).ok()?;
    let at = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Some(Timestamps {
        last_access: at,
        last_modification: at,
    })
}

fn refused(name: String, error: io::Error) -> ArchiveError {
    match Errno::from_io_error(&error) {
        Some(Errno::LOOP | Errno::NOTDIR) => ArchiveError::NotBelowDirectory { name },
        Some(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => ArchiveError::OtherKind { name },
        _ => ArchiveError::Write {
            name,
            source: error,
        },
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
