//! From a tree to a tar archive, one entry after another.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::is_regular;
use super::pipe::Sink;
use crate::files::staging::Staged;
use crate::reply::HttpError;
use crate::users::Names;

/// How deep a tree may be: each level holds a descriptor.
const MAX_DEPTH: usize = 256;

/// File systems whose contents the kernel makes up, which are not packed (statfs(2)).
const MADE_UP: [u64; 9] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6367_7270, // cgroup2
    0x0027_e0eb, // cgroup
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x1cd1,      // devpts
    0xcafe_4a11, // bpf
];

/// A directory or file to pack.
pub(super) enum Source {
    Directory(OwnedFd),
    File { name: OsString, file: File },
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, HttpError> {
        let failed = |error: &io::Error| {
            HttpError::from_io(&format!("cannot read '{}'", path.display()), error)
        };
        // A pipe that nobody writes must not hold the request.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| failed(&error))?;
        let metadata = file.metadata().map_err(|error| failed(&error))?;
        if metadata.is_dir() {
            return Ok(Self::Directory(file.into()));
        }
        if metadata.is_file() {
            let name = path.file_name().unwrap_or(OsStr::new("file")).to_owned();
            return Ok(Self::File { name, file });
        }
        Err(HttpError::bad_request(format!(
            "path '{}' is neither a directory nor a file",
            path.display()
        )))
    }
}

/// Packs all of it into the sink, and ends that.
pub(super) fn pack(source: Source, sink: Sink) {
    let mut packer = Packer {
        builder: Builder::new(sink),
        names: Names::load(),
        shrunk: None,
    };
    let walked = match source {
        Source::Directory(directory) => packer.walk(directory),
        Source::File { name, file } => packer.file(Path::new(&name), file),
    };
    if let Err(error) = walked {
        // The end that the builder writes when it is dropped stays in the sink's buffer.
        packer.builder.get_mut().abort(error);
        return;
    }
    let outcome = match packer.shrunk {
        None => Ok(()),
        Some(path) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("'{}' became shorter while it was read", path.display()),
        )),
    };
    // On an error the connection is gone, and the sink with it.
    if let Ok(sink) = packer.builder.into_inner() {
        sink.finish(outcome);
    }
}

/// One directory on the way down.
struct Level {
    directory: Dir,
    path: PathBuf,
    device: u64,
}

struct Packer {
    builder: Builder<Sink>,
    names: Names,
    /// The first file that was not all there.
    shrunk: Option<PathBuf>,
}

impl Packer {
    fn walk(&mut self, root: OwnedFd) -> io::Result<()> {
        let mut levels = vec![Level {
            device: fstat(&root)?.st_dev,
            directory: Dir::new(root)?,
            path: PathBuf::new(),
        }];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.directory.read() else {
                levels.pop();
                continue;
            };
            let entry = entry?;
            if let Some(below) = self.entry(level, entry.file_name())? {
                if levels.len() >= MAX_DEPTH {
                    return Err(io::Error::other(format!(
                        "'{}' lies more than {MAX_DEPTH} directories deep",
                        below.path.display()
                    )));
                }
                levels.push(below);
            }
        }
        Ok(())
    }

    /// Packs one entry; hands back the directory that is to be walked next, if it is one.
    fn entry(&mut self, level: &Level, name: &CStr) -> io::Result<Option<Level>> {
        let os_name = OsStr::from_bytes(name.to_bytes());
        if matches!(name.to_bytes(), b"." | b"..") || Staged::parse(os_name).is_some() {
            return Ok(None);
        }
        let directory = level.directory.fd()?;
        // An entry that goes away meanwhile is left out.
        let Some(stat) = there(statat(directory, name, AtFlags::SYMLINK_NOFOLLOW))? else {
            return Ok(None);
        };
        let path = level.path.join(os_name);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = openat(directory, name, flags, Mode::empty());
                let Some(below) = there(opened)? else {
                    return Ok(None);
                };
                let stat = fstat(&below)?;
                let mut header = self.header(&stat, EntryType::Directory, 0);
                self.builder.append_data(&mut header, &path, io::empty())?;
                if stat.st_dev != level.device && is_made_up(&below) {
                    return Ok(None);
                }
                Ok(Some(Level {
                    device: stat.st_dev,
                    directory: Dir::new(below)?,
                    path,
                }))
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                if let Some(file) = there(openat(directory, name, flags, Mode::empty()))? {
                    let file = File::from(file);
                    if is_regular(&file) {
                        self.file(&path, file)?;
                    }
                }
                Ok(None)
            }
            FileType::Symlink => {
                if let Some(target) = there(readlinkat(directory, name, Vec::new()))? {
                    let target = OsString::from_vec(target.into_bytes());
                    let mut header = self.header(&stat, EntryType::Symlink, 0);
                    self.builder.append_link(&mut header, &path, target)?;
                }
                Ok(None)
            }
            // Devices, pipes and sockets mean nothing elsewhere.
            _ => Ok(None),
        }
    }

    fn file(&mut self, path: &Path, file: File) -> io::Result<()> {
        let stat = fstat(&file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = self.header(&stat, EntryType::Regular, size);
        let mut contents = Exactly {
            file,
            left: size,
            short: false,
        };
        self.builder.append_data(&mut header, path, &mut contents)?;
        if contents.short && self.shrunk.is_none() {
            self.shrunk = Some(path.to_owned());
        }
        Ok(())
    }

    fn header(&self, stat: &Stat, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        // A name that does not fit is left out; the number says who it is.
        header.set_username(&self.names.user(stat.st_uid)).ok();
        header.set_groupname(&self.names.group(stat.st_gid)).ok();
        header
    }
}

/// The result, or `None` where the entry is gone or something else by now.
fn there<T>(found: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::INVAL | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn is_made_up(directory: &OwnedFd) -> bool {
    rustix::fs::fstatfs(directory)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| MADE_UP.contains(&kind)))
}

/// As many bytes as were promised, whatever becomes of the file.
struct Exactly {
    file: File,
    left: u64,
    short: bool,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = &mut buffer[..wanted];
        let count = match self.file.read(buffer)? {
            0 if wanted > 0 => {
                self.short = true;
                buffer.fill(0);
                wanted
            }
            count => count,
        };
        self.left -= count as u64;
        Ok(count)
    }
}
