//! The state file.
//!
//! ```text
//! offset  bytes
//!      0      8  magic "WRNNSNAP"
//!      8      2  format version          ┐
//!     10      2  architecture (1: x86-64)│ little-endian
//!     12      4  length n of the body    ┘
//!     16     16  version of the VMM that wrote it, as text, padded with zeros
//!     32      n  body: a `MachineState`, in postcard's encoding
//!   32+n     32  SHA-256 of everything before
//! ```
//!
//! Postcard's encoding is specified and fixed since its version 1.0. It writes the
//! registers of a vCPU as they are, where JSON would take three times the room, and the
//! time to read it that a load is to save. It does not describe itself, so that any
//! change of [`MachineState`] needs a new format version; a test notices if one changes
//! without the other.
//!
//! The checksum guards against damage, not against forgery: a state file is to be trusted
//! like a program, since it says what the guest's processor does next.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::snapshot::state::MachineState;

const MAGIC: [u8; 8] = *b"WRNNSNAP";
/// The format that is written.
pub const FORMAT_VERSION: u16 = 2;
/// The oldest format that is read: it ends before the state of a balloon.
const OLDEST_VERSION: u16 = 1;
/// A machine without a balloon, as a body ends.
const NO_BALLOON: [u8; 1] = [0];
const ARCHITECTURE_X86_64: u16 = 1;
const HEADER_LENGTH: usize = 32;
const VMM_VERSION_LENGTH: usize = 16;
const CHECKSUM_LENGTH: usize = 32;
/// The longest body. 32 vCPUs take 400 KiB.
const BODY_MAX: usize = 8 << 20;

/// A state file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteStateError {
    /// The state does not fit the format.
    #[error("cannot encode the machine's state")]
    Encode(#[source] postcard::Error),
    /// It is absurdly long.
    #[error("the machine's state has {0} bytes, more than the format takes")]
    TooLong(usize),
    /// The file.
    #[error("cannot write the state file {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A state file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadStateError {
    /// The file.
    #[error("cannot read the state file {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another program's.
    #[error("it is no state file of wrenn-vmm; load it with the VMM that made it")]
    Foreign,
    /// For another kind of machine.
    #[error("it is of architecture {0}, and this VMM is for x86-64")]
    Architecture(u16),
    /// From another time.
    #[error(
        "it has format {found}, written by wrenn-vmm {vmm}, and this wrenn-vmm reads \
         {OLDEST_VERSION} to {FORMAT_VERSION}"
    )]
    Version {
        /// Its format.
        found: u16,
        /// Who wrote it.
        vmm: String,
    },
    /// Cut short or grown.
    #[error("it has {found} bytes and says that it has {expected}: it is damaged")]
    Length {
        /// Bytes that are there.
        found: usize,
        /// Bytes by its header.
        expected: usize,
    },
    /// Flipped bits.
    #[error("its checksum is wrong: it is damaged")]
    Checksum,
    /// The body is no state, whatever the checksum says.
    #[error("its body makes no sense")]
    Decode(#[source] postcard::Error),
}

/// Writes `state` to the file at `path`, in place of what was there.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, state: &MachineState) -> Result<(), WriteStateError> {
    let bytes = encode(state)?;
    File::create(path)
        .and_then(|mut file| file.write_all(&bytes))
        .map_err(|source| WriteStateError::Write {
            path: path.into(),
            source,
        })
}

/// Reads the file at `path`.
///
/// # Errors
/// If it is not exactly what [`write()`] has written.
pub fn read(path: &Path) -> Result<MachineState, ReadStateError> {
    let most = HEADER_LENGTH + BODY_MAX + CHECKSUM_LENGTH + 1;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(most as u64).read_to_end(&mut bytes))
        .map_err(|source| ReadStateError::Read {
            path: path.into(),
            source,
        })?;
    decode(&bytes)
}

fn encode(state: &MachineState) -> Result<Vec<u8>, WriteStateError> {
    let body = postcard::to_allocvec(state).map_err(WriteStateError::Encode)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= BODY_MAX)
        .ok_or(WriteStateError::TooLong(body.len()))?;
    let mut bytes = Vec::with_capacity(HEADER_LENGTH + body.len() + CHECKSUM_LENGTH);
    bytes.extend(MAGIC);
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    bytes.extend(ARCHITECTURE_X86_64.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    let vmm = env!("CARGO_PKG_VERSION").as_bytes();
    bytes.extend(vmm.iter().take(VMM_VERSION_LENGTH));
    bytes.resize(HEADER_LENGTH, 0);
    bytes.extend(body);
    let checksum = Sha256::digest(&bytes);
    bytes.extend(checksum);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<MachineState, ReadStateError> {
    let (header, rest) = bytes
        .split_first_chunk::<HEADER_LENGTH>()
        .ok_or(ReadStateError::Foreign)?;
    let [
        m0,
        m1,
        m2,
        m3,
        m4,
        m5,
        m6,
        m7,
        v0,
        v1,
        a0,
        a1,
        l0,
        l1,
        l2,
        l3,
        vmm @ ..,
    ] = *header;
    if [m0, m1, m2, m3, m4, m5, m6, m7] != MAGIC {
        return Err(ReadStateError::Foreign);
    }
    let version = u16::from_le_bytes([v0, v1]);
    if !(OLDEST_VERSION..=FORMAT_VERSION).contains(&version) {
        let vmm = String::from_utf8_lossy(&vmm);
        return Err(ReadStateError::Version {
            found: version,
            vmm: vmm.trim_end_matches('\0').to_owned(),
        });
    }
    let architecture = u16::from_le_bytes([a0, a1]);
    if architecture != ARCHITECTURE_X86_64 {
        return Err(ReadStateError::Architecture(architecture));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let expected = HEADER_LENGTH + length + CHECKSUM_LENGTH;
    if bytes.len() != expected {
        return Err(ReadStateError::Length {
            found: bytes.len(),
            expected,
        });
    }
    let (body, checksum) = rest.split_at(length);
    if Sha256::digest(&bytes[..HEADER_LENGTH + length])[..] != *checksum {
        return Err(ReadStateError::Checksum);
    }
    let completed;
    let body = if version == 1 {
        completed = [body, &NO_BALLOON].concat();
        &completed
    } else {
        body
    };
    // What is left over would be another structure than this one.
    match postcard::take_from_bytes(body) {
        Ok((state, [])) => Ok(state),
        Ok(_) => Err(ReadStateError::Decode(
            postcard::Error::DeserializeBadEncoding,
        )),
        Err(error) => Err(ReadStateError::Decode(error)),
    }
}

#[cfg(test)]
mod tests;
