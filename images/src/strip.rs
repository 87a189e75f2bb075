//! Leaves out of our programs what running them does not need.
//!
//! A debug build carries several times its size in symbols, and all of it would be unpacked
//! into memory at each boot. What a program needs at run time is what its program headers
//! name; the section headers and the debug sections lie behind that.
//!
//! Source: the ELF-64 object file format, chapters "ELF header" and "Program header".

use std::fs;
use std::io;
use std::path::Path;

const HEADER: usize = 64;
const SECTION_TABLE_OFFSET: std::ops::Range<usize> = 40..48;
const SECTION_COUNT: std::ops::Range<usize> = 60..62;
const SECTION_OF_NAMES: std::ops::Range<usize> = 62..64;

/// Reads the program `path` without symbols. What is no 64-bit ELF file comes as it is.
///
/// # Errors
/// It cannot be read.
pub fn program(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = fs::read(path)?;
    if let Some(end) = end_of_segments(&bytes) {
        bytes.truncate(end);
        for field in [SECTION_TABLE_OFFSET, SECTION_COUNT, SECTION_OF_NAMES] {
            bytes[field].fill(0);
        }
    }
    Ok(bytes)
}

/// Where the last part that is loaded ends. Nothing if that cannot be told.
fn end_of_segments(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < HEADER || !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let short = |at: usize| {
        Some(usize::from(u16::from_le_bytes(
            bytes.get(at..at + 2)?.try_into().ok()?,
        )))
    };
    let long = |at: usize| {
        usize::try_from(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)).ok()
    };
    let (table, size, count) = (long(32)?, short(54)?, short(56)?);
    let mut end = table.checked_add(size.checked_mul(count)?)?.max(HEADER);
    for index in 0..count {
        let entry = table + index * size;
        end = end.max(long(entry + 8)?.checked_add(long(entry + 32)?)?);
    }
    (count > 0 && end <= bytes.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::command::Program;

    #[test]
    fn a_stripped_program_still_runs_and_is_smaller() {
        let this = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let stripped = dir.path().join("stripped");
        fs::write(&stripped, program(&this).unwrap()).unwrap();
        fs::set_permissions(&stripped, fs::Permissions::from_mode(0o755)).unwrap();
        let size = |path: &Path| path.metadata().unwrap().len();
        assert!(size(&stripped) < size(&this));
        let listed = Program::new(stripped.to_str().unwrap())
            .arg("--list")
            .text()
            .unwrap();
        assert!(listed.contains("a_stripped_program_still_runs"));
    }

    #[test]
    fn anything_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut liar = vec![0xff; 200];
        liar[..6].copy_from_slice(b"\x7fELF\x02\x01");
        for contents in [&b"#!/bin/sh\n"[..], b"", b"\x7fELF", &liar] {
            fs::write(&path, contents).unwrap();
            assert_eq!(program(&path).unwrap(), contents);
        }
    }
}
