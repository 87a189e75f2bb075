//! Names that do not fit into a header, from the entries before it.
//!
//! They are held in memory, so they have a limit. Source: POSIX.1-2017, pax, "pax Extended
//! Header"; GNU tar manual, "Basic Tar Format".

use std::io::Read;

use super::ArchiveError;

const LONGEST: u64 = 1 << 20;

/// Fields that override those of the next header.
#[derive(Debug, Default)]
pub(super) struct Extension {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) sparse: bool,
}

impl Extension {
    pub(super) fn read(data: impl Read, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > LONGEST {
            return Err(ArchiveError::BadExtension);
        }
        let mut contents = Vec::new();
        data.take(LONGEST)
            .read_to_end(&mut contents)
            .map_err(ArchiveError::Read)?;
        Ok(contents)
    }

    /// A name as GNU tar has it.
    pub(super) fn name(data: impl Read, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut name = Self::read(data, size)?;
        let end = name.iter().position(|byte| *byte == 0);
        name.truncate(end.unwrap_or(name.len()));
        Ok(name)
    }

    /// Takes records of the form `length key=value\n`.
    pub(super) fn take_records(
        &mut self,
        mut rest: &[u8],
        data_size: &mut Option<u64>,
    ) -> Result<(), ArchiveError> {
        while !rest.is_empty() {
            let record = next_record(&mut rest).ok_or(ArchiveError::BadExtension)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (key, value) = record.split_at(equals.ok_or(ArchiveError::BadExtension)?);
            let value = &value[1..];
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => *data_size = Some(decimal(value).ok_or(ArchiveError::BadExtension)?),
                _ => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Ok(())
    }
}

fn next_record<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let space = rest.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&rest[..space])?).ok()?;
    let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
    *rest = &rest[length..];
    Some(record)
}

fn decimal(text: &[u8]) -> Option<u64> {
    // A leading sign is fine for the parser, but not for the format.
    text.first()?.is_ascii_digit().then_some(())?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_records_are_refused() {
        let take = |text: &[u8]| Extension::default().take_records(text, &mut None);
        assert!(take(b"13 path=a/bc\n").is_ok());
        for text in [
            &b"5"[..],
            b"0 ",
            b"99 path=a\n",
            b"3 a",
            b"7 path\n",
            b"+8 a=b\n",
            b"18446744073709551615 a=b\n",
        ] {
            assert!(take(text).is_err(), "{text:?}");
        }
    }
}
