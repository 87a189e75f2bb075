//! Reads tar archives as a stream, with bounds on everything that an archive can claim.
//!
//! ```text
//!  ┌────────┬───────────────┬────────┬──────────────┬─────┬───────────────┐
//!  │ header │ data, padded  │ header │ data, padded │  …  │ zeroed blocks │
//!  │ 512 B  │ to 512 B      │ 512 B  │ to 512 B     │     │               │
//!  └────────┴───────────────┴────────┴──────────────┴─────┴───────────────┘
//! ```
//!
//! What does not fit into a header (long names, extended attributes) stands in the data of
//! an entry before it. It is held in memory, so it has a limit.
//!
//! Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar
//! manual, "Basic Tar Format".

use std::io::{self, Read};

use super::limits::{Budget, LimitError, limit_behind};

const BLOCK: usize = 512;

/// The most that the extension of one header may take.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("it ends in the middle of an entry; fetch or make it again")]
    Truncated,
    #[error("what stands at byte {at} of it is no tar header; fetch or make it again")]
    BadHeader { at: u64 },
    #[error("the extended header of an entry is longer than {LONGEST_EXTENSION} bytes")]
    LongExtension,
    #[error("the extended header of an entry makes no sense")]
    BadExtension,
    #[error("{name:?} is stored as a sparse file; pack the tree again without --sparse")]
    Sparse { name: String },
    #[error("{name:?} has the type {kind:?}, which this program does not know")]
    UnknownType { name: String, kind: char },
    #[error("the entry {name:?} {problem}")]
    Entry { name: String, problem: Problem },
    #[error("cannot write the entry {name:?}")]
    Write {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error("cannot read it")]
    Read(#[source] io::Error),
}

/// What is wrong with one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("leads out of the root file system by '..'")]
    Escapes,
    #[error("has no name")]
    NoName,
    #[error("has a name with a zero byte")]
    ZeroByte,
    #[error("has a name that is longer than a file system takes")]
    LongName,
    #[error("lies more than {MAX_DEPTH} directories deep", MAX_DEPTH = super::tree::MAX_DEPTH)]
    TooDeep,
    #[error("lies below something that is no directory")]
    NotBelowDirectory,
    #[error("is a hard link to something that is not there")]
    NoLinkTarget,
    #[error("is a hard link to a directory")]
    LinkToDirectory,
    #[error("is a symbolic link that leads nowhere or is too long")]
    BadLink,
    #[error("belongs to a user or group number that does not exist")]
    BadOwner,
    #[error("is a whiteout of nothing that a name could stand for")]
    BadWhiteout,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    /// A device node or a named pipe.
    Special,
}

/// One entry, its data still to be read.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds since 1970.
    pub(super) modified: u64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The name as it can be shown to a person.
    pub(super) fn name(&self) -> String {
        shown(&self.path)
    }
}

/// A name as it can be shown to a person, cut where it is absurd.
pub(super) fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 200;
    String::from_utf8_lossy(name.get(..LONGEST).unwrap_or(name)).into_owned()
}

/// What the entries before a header say about it.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    sparse: bool,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive that is being read.
pub(super) struct TarReader<'a, R> {
    reader: R,
    budget: &'a Budget,
    position: u64,
    /// Data of the present entry that was not read yet, and what fills its last block.
    left: u64,
    padding: u64,
}

impl<'a, R: Read> TarReader<'a, R> {
    /// Reads the archive in `reader`, taking its entries from `budget`.
    pub(super) fn new(reader: R, budget: &'a Budget) -> Self {
        Self {
            reader,
            budget,
            position: 0,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry. What was not read of the last one is skipped.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extension = Extension::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            self.budget.take_entry()?;
            let size = number(&header[124..136]).ok_or(self.bad_header())?;
            match header[156] {
                b'L' => extension.path = Some(until_zero(&self.extension(size)?).to_vec()),
                b'K' => extension.link = Some(until_zero(&self.extension(size)?).to_vec()),
                b'x' => {
                    let records = self.extension(size)?;
                    extension.read_records(&records)?;
                }
                // Defaults for all that follows, of which none matters here.
                b'g' => drop(self.extension(size)?),
                _ => return self.entry(&header, size, extension).map(Some),
            }
        }
    }

    /// Reads on past the archive's end, so that a digest over all of it is complete.
    pub(super) fn drain(&mut self) -> Result<(), ArchiveError> {
        io::copy(&mut self.reader, &mut io::sink())
            .map(drop)
            .map_err(read_error)
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        size: u64,
        extension: Extension,
    ) -> Result<Entry, ArchiveError> {
        let path = extension.path.unwrap_or_else(|| name_in(header));
        let kind = match header[156] {
            // Archives older than ustar mark a directory by its name only.
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' | b'6' => Kind::Special,
            b'5' => Kind::Directory,
            b'S' => return Err(ArchiveError::Sparse { name: shown(&path) }),
            other => {
                return Err(ArchiveError::UnknownType {
                    name: shown(&path),
                    kind: char::from(other),
                });
            }
        };
        if extension.sparse {
            return Err(ArchiveError::Sparse { name: shown(&path) });
        }
        // Only files have data, whatever a header says.
        let size = match kind {
            Kind::File => extension.size.unwrap_or(size),
            _ => 0,
        };
        self.begin_data(size)?;
        let field = |range: std::ops::Range<usize>| number(&header[range]).ok_or(self.bad_header());
        let mode = u32::try_from(field(100..108)? & 0o7777).unwrap_or_default();
        Ok(Entry {
            kind,
            link: extension
                .link
                .unwrap_or_else(|| until_zero(&header[157..257]).to_vec()),
            size,
            mode,
            uid: extension.uid.map_or_else(|| field(108..116), Ok)?,
            gid: extension.gid.map_or_else(|| field(116..124), Ok)?,
            // Times before 1970 and other nonsense are no reason to refuse a file.
            modified: number(&header[136..148]).unwrap_or_default(),
            xattrs: extension.xattrs,
            path,
        })
    }

    /// The next header, or nothing at the end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                // Some packers leave out the zeroed blocks at the end.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ArchiveError::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !checksum_fits(&block) {
            return Err(self.bad_header());
        }
        self.position += BLOCK as u64;
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > LONGEST_EXTENSION {
            return Err(ArchiveError::LongExtension);
        }
        self.begin_data(size)?;
        let mut contents = Vec::new();
        self.read_to_end(&mut contents).map_err(read_error)?;
        Ok(contents)
    }

    fn begin_data(&mut self, size: u64) -> Result<(), ArchiveError> {
        let padded = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or(self.bad_header())?;
        self.position = self.position.saturating_add(padded);
        self.left = size;
        self.padding = padded - size;
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), ArchiveError> {
        io::copy(&mut *self, &mut io::sink()).map_err(read_error)?;
        let padding = std::mem::take(&mut self.padding);
        // The last padding of an archive may be missing.
        io::copy(&mut (&mut self.reader).take(padding), &mut io::sink()).map_err(read_error)?;
        Ok(())
    }

    fn bad_header(&self) -> ArchiveError {
        ArchiveError::BadHeader { at: self.position }
    }
}

/// The data of the present entry.
impl<R: Read> Read for TarReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
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
    /// Reads records of the form `length key=value\n`.
    fn read_records(&mut self, mut rest: &[u8]) -> Result<(), ArchiveError> {
        while !rest.is_empty() {
            let record = next_record(&mut rest).ok_or(ArchiveError::BadExtension)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (key, value) = record.split_at(equals.ok_or(ArchiveError::BadExtension)?);
            let value = &value[1..];
            let number = || decimal(value).ok_or(ArchiveError::BadExtension);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
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

/// A number of a header: octal digits, or binary with the first bit set.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        return rest
            .iter()
            .try_fold(u64::from(first & 0x7f), |number, byte| {
                Some(number.checked_mul(256)? | u64::from(*byte))
            });
    }
    let text = std::str::from_utf8(until_zero(field)).ok()?.trim();
    if text.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(text, 8).ok()
}

fn until_zero(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

fn name_in(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_zero(&header[..100]);
    let prefix = until_zero(&header[345..500]);
    // In GNU's own format other things stand in the place of the prefix.
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

/// Whether the block could be a tar header at all.
pub(super) fn checksum_fits(block: &[u8; BLOCK]) -> bool {
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                u64::from(b' ')
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    number(&block[148..156]) == Some(sum)
}

pub(super) fn read_error(error: io::Error) -> ArchiveError {
    if let Some(limit) = limit_behind(&error) {
        ArchiveError::Limit(limit)
    } else if error.kind() == io::ErrorKind::UnexpectedEof {
        ArchiveError::Truncated
    } else {
        ArchiveError::Read(error)
    }
}
