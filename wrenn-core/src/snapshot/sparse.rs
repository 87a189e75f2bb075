//! Files with holes: where they hold data, copies that keep the holes, and whether a file
//! system can be relied on to tell.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{
    FallocateFlags, Mode, OFlags, SeekFrom, copy_file_range, fallocate, ioctl_ficlone, open, seek,
};
use rustix::io::Errno;

/// The next part of a file that holds data, at or after an offset.
pub(super) fn next_data(file: impl AsFd, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if from >= end {
        return Ok(None);
    }
    let start = match seek(&file, SeekFrom::Data(from)) {
        Ok(start) => start,
        // Nothing but a hole up to the end.
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let stop = seek(&file, SeekFrom::Hole(start))?.min(end);
    Ok((start < stop).then_some(start..stop))
}

/// Copies a range between files. Blocks are shared where the file system can, and the
/// kernel copies where it can't. Holes of the range are left alone in the target.
pub(super) fn copy_range(
    source: &File,
    target: &File,
    range: Range<u64>,
    to: u64,
) -> io::Result<()> {
    let mut at = range.start;
    while let Some(data) = next_data(source, at, range.end)? {
        let mut from = data.start;
        let mut into = to + (data.start - range.start);
        while from < data.end {
            let wanted = usize::try_from(data.end - from).unwrap_or(usize::MAX);
            match copy_file_range(source, Some(&mut from), target, Some(&mut into), wanted) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        at = data.end;
    }
    Ok(())
}

/// Copies a whole file to a new one, sharing its blocks where the file system can.
pub(super) fn copy_file(source: &File, to: &Path) -> io::Result<File> {
    let length = source.metadata()?.len();
    let target = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    if ioctl_ficlone(&target, source).is_err() {
        target.set_len(length)?;
        copy_range(source, &target, 0..length, 0)?;
    }
    Ok(target)
}

/// Gives back the blocks of a range, which reads as zeros then.
pub(super) fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(
        file,
        flags,
        range.start,
        range.end - range.start,
    )?)
}

/// Whether files in a directory tell exactly which pages were written, zeros among them.
/// On a file system that does not, a diff would take pages that were never written for
/// pages that became zero, or the other way round.
pub(super) fn tells_written_pages(directory: &Path) -> io::Result<bool> {
    const ZEROS: [u8; 4096] = [0; 4096];
    const PAGE: u64 = ZEROS.len() as u64;
    const WRITTEN: [u64; 3] = [1, 511, 700];

    // Without a name: nobody else can take it away, and nothing of it stays.
    let nameless = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = match open(directory, nameless, Mode::RUSR | Mode::WUSR) {
        Ok(file) => File::from(file),
        // A file system of another kind than those that are known to tell.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    file.set_len(1024 * PAGE)?;
    for page in WRITTEN {
        // Zeros must count as written: some file systems turn them into holes.
        file.write_all_at(&ZEROS, page * PAGE)?;
    }
    let mut at = 0;
    for page in WRITTEN {
        let data = next_data(&file, at, 1024 * PAGE)?;
        if data != Some(page * PAGE..(page + 1) * PAGE) {
            return Ok(false);
        }
        at = (page + 1) * PAGE;
    }
    Ok(next_data(&file, at, 1024 * PAGE)?.is_none())
}
