//! Reads tar archives as a stream, with bounds on everything that an archive can claim.
//!
//! Values that do not fit into a header, such as long names, stand in the data of an entry
//! before it. They are held in memory, so they have a limit.
//!
//! Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar
//! manual, "Basic Tar Format".

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};

const BLOCK: usize = 512;
/// The most that the extension of one header may take.
const LONGEST_EXTENSION: u64 = 64 * 1024;

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the archive ends in the middle of an entry")]
    Truncated,
    #[error("this is no tar archive, or it is damaged")]
    BadHeader,
    #[error("the extended header of an entry is longer than {LONGEST_EXTENSION} bytes")]
    LongExtension,
    #[error("cannot read the archive")]
    Io(#[source] io::Error),
}

/// One entry, its data still to be read.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: EntryType,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) modified: u64,
}

#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

/// An archive that is being read.
pub(super) struct TarReader<R> {
    reader: R,
    /// Data of the present entry that was not read yet, and what fills its last block.
    left: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry. Unread data of the last one is skipped.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut extension = Extension::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size().map_err(|_| ReadError::BadHeader)?;
            match header.entry_type() {
                EntryType::GNULongName => extension.path = Some(until_zero(self.extension(size)?)),
                EntryType::GNULongLink => extension.link = Some(until_zero(self.extension(size)?)),
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    extension.read(&records)?;
                }
                // Defaults for all that follows, of which none matters here.
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                kind => return self.entry(&header, kind, size, extension).map(Some),
            }
        }
    }

    /// Reads on past the archive's end, for a sender that has not come to its own.
    pub(super) fn drain(&mut self) -> Result<(), ReadError> {
        io::copy(&mut self.reader, &mut io::sink())
            .map(drop)
            .map_err(read_error)
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        extension: Extension,
    ) -> Result<Entry, ReadError> {
        let path = extension
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = match kind {
            // Archives older than ustar mark a directory by its name only.
            EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
            EntryType::Continuous => EntryType::Regular,
            _ if extension.sparse => EntryType::GNUSparse,
            kind => kind,
        };
        // Only files have data, whatever a header says.
        self.begin_data(match kind {
            EntryType::Regular => extension.size.unwrap_or(size),
            _ => 0,
        })?;
        let link = match extension.link {
            Some(link) => link,
            None => header
                .link_name_bytes()
                .map_or_else(Vec::new, |link| link.into_owned()),
        };
        Ok(Entry {
            kind,
            path,
            link,
            mode: header.mode().unwrap_or(0o644) & 0o7777,
            // Times before 1970 and other nonsense are no reason to refuse a file.
            modified: header.mtime().unwrap_or(0),
        })
    }

    /// The next header, or nothing at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                // Some packers leave out the zeroed blocks at the end.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ReadError::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        if !checksum_fits(&header, &block) {
            return Err(ReadError::BadHeader);
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        if size > LONGEST_EXTENSION {
            return Err(ReadError::LongExtension);
        }
        self.begin_data(size)?;
        let mut contents = Vec::new();
        self.read_to_end(&mut contents).map_err(read_error)?;
        Ok(contents)
    }

    fn begin_data(&mut self, size: u64) -> Result<(), ReadError> {
        let padded = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or(ReadError::BadHeader)?;
        self.left = size;
        self.padding = padded - size;
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), ReadError> {
        io::copy(&mut *self, &mut io::sink()).map_err(read_error)?;
        let padding = std::mem::take(&mut self.padding);
        // The last padding of an archive may be missing.
        io::copy(&mut (&mut self.reader).take(padding), &mut io::sink()).map_err(read_error)?;
        Ok(())
    }
}

/// The data of the present entry.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

impl Extension {
    fn read(&mut self, records: &[u8]) -> Result<(), ReadError> {
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|_| ReadError::BadHeader)?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = record.value().ok().and_then(|size| size.parse().ok());
                    self.size = Some(size.ok_or(ReadError::BadHeader)?);
                }
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }
}

fn checksum_fits(header: &Header, block: &[u8; BLOCK]) -> bool {
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum();
    header.cksum().is_ok_and(|stated| stated == sum)
}

fn until_zero(mut field: Vec<u8>) -> Vec<u8> {
    if let Some(end) = field.iter().position(|byte| *byte == 0) {
        field.truncate(end);
    }
    field
}

pub(super) fn read_error(error: io::Error) -> ReadError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        ReadError::Truncated
    } else {
        ReadError::Io(error)
    }
}
