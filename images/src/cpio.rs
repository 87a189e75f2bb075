//! The "newc" archive that the kernel unpacks as its first root file system.
//!
//! ```text
//! entry   = header name NUL pad4 contents pad4
//! header  = "070701" and thirteen fields of eight hexadecimal digits
//! archive = entry… entry("TRAILER!!!")
//! ```
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel. Inode
//! numbers are counted up and times are zero, so the same entries give the same bytes.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes an archive to `W`, entry by entry. Parents must come before what is in them.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    inodes: u32,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    contents: &'a [u8],
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self { out, inodes: 0 }
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn directory(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.entry(&Entry {
            name,
            mode: DIRECTORY | permissions,
            device: (0, 0),
            contents: &[],
        })
    }

    /// Adds a file.
    ///
    /// # Errors
    /// The output cannot be written, or the file is over 4 GiB.
    pub fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(&Entry {
            name,
            mode: REGULAR | permissions,
            device: (0, 0),
            contents,
        })
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        let contents = target.as_bytes();
        self.entry(&Entry {
            name,
            mode: SYMLINK | 0o777,
            device: (0, 0),
            contents,
        })
    }

    /// Adds a character device node.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        let mode = CHARACTER_DEVICE | permissions;
        self.entry(&Entry {
            name,
            mode,
            device: (major, minor),
            contents: &[],
        })
    }

    /// Ends the archive and gives back the output.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(&Entry {
            name: "TRAILER!!!",
            mode: 0,
            device: (0, 0),
            contents: &[],
        })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let size = u32::try_from(entry.contents.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, entry.name.to_owned()))?;
        let name_size = u32::try_from(entry.name.len() + 1)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidFilename, entry.name.to_owned()))?;
        self.inodes += 1;
        let links = if entry.mode & DIRECTORY == DIRECTORY {
            2
        } else {
            1
        };
        let fields = [
            self.inodes,
            entry.mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            entry.device.0,
            entry.device.1,
            name_size,
            0,
        ];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(entry.name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(6 + 13 * 8 + entry.name.len() + 1)?;
        self.out.write_all(entry.contents)?;
        self.pad(entry.contents.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.directory("dev", 0o755).unwrap();
        writer.character_device("dev/console", 0o600, 5, 1).unwrap();
        writer.file("init", 0o755, b"#!/bin/sh\n").unwrap();
        writer.symlink("bin", "usr/bin").unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn first_entry_is_laid_out_as_the_kernel_reads_it() {
        let archive = sample();
        let header = std::str::from_utf8(&archive[..110]).unwrap();
        assert_eq!(
            header,
            "070701\
             00000001000041ED00000000000000000000000200000000\
             0000000000000000000000000000000000000000\
             0000000400000000"
        );
        assert_eq!(&archive[110..116], b"dev\0\0\0"[..6].as_ref());
    }

    #[test]
    fn every_entry_starts_on_a_multiple_of_four() {
        let archive = sample();
        assert_eq!(archive.len() % 4, 0);
        let starts: Vec<usize> = archive
            .windows(6)
            .enumerate()
            .filter(|(_, window)| window == b"070701")
            .map(|(at, _)| at)
            .collect();
        assert_eq!(starts.len(), 5);
        assert!(starts.iter().all(|start| start % 4 == 0), "{starts:?}");
    }

    #[test]
    fn same_entries_give_the_same_bytes() {
        assert_eq!(sample(), sample());
    }
}
