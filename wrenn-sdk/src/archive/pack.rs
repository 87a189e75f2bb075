//! A local directory becomes an archive.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::Skipped;
use crate::error::{Error, Result};

/// Bytes of all files under a directory.
pub(crate) fn size_of(root: &Path) -> Result<u64> {
    let mut size = 0;
    walk(root, &mut |_, metadata| {
        size += if metadata.is_file() {
            metadata.len()
        } else {
            0
        };
        Ok(())
    })?;
    Ok(size)
}

/// Writes all that is under a directory as an archive, links as links. Devices, pipes and
/// sockets are left out.
pub(crate) fn pack<W: Write>(
    root: &Path,
    writer: W,
    mut progress: impl FnMut(u64),
) -> Result<Vec<Skipped>> {
    let mut archive = Builder::new(writer);
    let mut skipped = Vec::new();
    let mut done = 0;
    walk(root, &mut |path, metadata| {
        let name = path.strip_prefix(root).unwrap_or(path);
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
        let kind = metadata.file_type();
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            let written = archive.append_data(&mut header, name, io::empty());
            return written.map_err(sending);
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            let target = fs::read_link(path).map_err(Error::io("read", path))?;
            let written = archive.append_link(&mut header, name, target);
            return written.map_err(sending);
        }
        if !kind.is_file() {
            let name = name.as_os_str().as_bytes();
            skipped.push(Skipped::new(name, "a device, pipe or socket"));
            return Ok(());
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        // As long as it is now, whatever is appended to it meanwhile.
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        header.set_size(size);
        let mut source = Source {
            file: file.take(size),
            failed: None,
        };
        let written = archive.append_data(&mut header, name, &mut source);
        if let Some(failed) = source.failed {
            return Err(Error::io("read", path)(failed));
        }
        written.map_err(sending)?;
        if source.file.limit() > 0 {
            let shrunk =
                io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter meanwhile");
            return Err(Error::io("read", path)(shrunk));
        }
        done += size;
        progress(done);
        Ok(())
    })?;
    let mut writer = archive.into_inner().map_err(sending)?;
    writer.flush().map_err(sending)?;
    Ok(skipped)
}

fn sending(source: io::Error) -> Error {
    Error::Stream {
        operation: "send the archive",
        source,
    }
}

/// Tells errors of the file from those of the archive.
struct Source {
    file: io::Take<File>,
    failed: Option<io::Error>,
}

impl io::Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer).inspect_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(kind.into());
            }
        })
    }
}

type Visit<'a> = &'a mut dyn FnMut(&Path, &fs::Metadata) -> Result<()>;

/// Visits all that is under `root`, a directory before what is in it, names in order.
fn walk(root: &Path, visit: Visit<'_>) -> Result<()> {
    let mut open: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        let mut paths = Vec::new();
        let listed = fs::read_dir(&directory).map_err(Error::io("list", &directory))?;
        for entry in listed {
            paths.push(entry.map_err(Error::io("list", &directory))?.path());
        }
        paths.sort();
        let mut below = Vec::new();
        for path in paths {
            let metadata = fs::symlink_metadata(&path).map_err(Error::io("read", &path))?;
            visit(&path, &metadata)?;
            if metadata.is_dir() {
                below.push(path);
            }
        }
        open.extend(below.into_iter().rev());
    }
    Ok(())
}
