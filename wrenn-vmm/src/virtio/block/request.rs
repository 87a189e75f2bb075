//! The format of block requests (specification 1.2, section 5.2.6).
//!
//! ```text
//! readable   type: u32 | reserved: u32 | sector: u64 | data of a write …
//! writable   data of a read … | status: u8
//! ```
//!
//! How the driver cuts these bytes into descriptors is its own choice, so that they are
//! taken as two streams. Everything here comes from the guest and may be hostile.

use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;
use crate::sys::block_io::Scatter;
use crate::virtio::block::SERIAL_LENGTH;
use crate::virtio::queue::{Chain, in_memory};

const HEADER_LENGTH: usize = 16;

const TYPE_READ: u32 = 0;
const TYPE_WRITE: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;

/// The last byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done, or not all of it.
    Failed = 1,
    /// Unknown kind of request.
    Unsupported = 2,
}

impl Status {
    /// Writes the byte and says how many bytes that were.
    pub fn write(self, memory: &GuestMemory, address: u64) -> u32 {
        // The address has been checked; a failure leaves the guest without a status,
        // which is what it gets for an address that it may not use.
        u32::from(memory.write_obj(self as u8, GuestAddress(address)).is_ok())
    }
}

/// What the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From disk to memory.
    Read {
        /// First sector.
        sector: u64,
    },
    /// From memory to disk.
    Write {
        /// First sector.
        sector: u64,
    },
    /// Make earlier writes durable.
    Flush,
    /// The serial number.
    GetId,
    /// Anything else.
    Unsupported(u32),
}

/// A request whose buffers all lie in guest memory.
#[derive(Debug)]
pub struct Request {
    /// What it is.
    pub kind: Kind,
    /// Where the status byte goes.
    pub status_address: u64,
    /// The data buffers: address and length.
    data: Vec<(u64, u32)>,
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The chain is too long, has a loop, or names descriptors that do not exist.
    #[error("the descriptor chain is broken")]
    Chain,
    /// A buffer lies outside of guest memory.
    #[error("a buffer lies outside of guest memory")]
    Address,
    /// A readable buffer comes after a writable one.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// The header is cut short.
    #[error("the header is incomplete")]
    Header,
    /// There is no place for the status.
    #[error("there is no place for the status")]
    NoStatus,
    /// More than 4 GiB.
    #[error("the request is too large")]
    TooLarge,
}

/// A request that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ParseError {
    /// Where the guest may be told, if that much is clear.
    pub status_address: Option<u64>,
    /// What is wrong.
    #[source]
    pub reason: Malformed,
}

impl Request {
    /// Takes a chain apart.
    ///
    /// # Errors
    /// If the guest made it up wrongly.
    pub fn parse(chain: &Chain, memory: &GuestMemory) -> Result<Self, ParseError> {
        let failed = |status_address, reason| {
            Err(ParseError {
                status_address,
                reason,
            })
        };
        if !chain.complete {
            return failed(None, Malformed::Chain);
        }
        let mut readable: Vec<(u64, u32)> = Vec::with_capacity(chain.descriptors.len());
        let mut writable: Vec<(u64, u32)> = Vec::with_capacity(chain.descriptors.len());
        let mut total = 0u32;
        for descriptor in &chain.descriptors {
            let range = (descriptor.addr().0, descriptor.len());
            if range.1 == 0 {
                continue;
            }
            if !in_memory(memory, descriptor) {
                return failed(None, Malformed::Address);
            }
            match total.checked_add(range.1) {
                Some(sum) => total = sum,
                None => return failed(None, Malformed::TooLarge),
            }
            match (descriptor.is_write_only(), writable.is_empty()) {
                (true, _) => writable.push(range),
                (false, true) => readable.push(range),
                (false, false) => return failed(None, Malformed::Order),
            }
        }

        let Some((start, length)) = writable.pop() else {
            return failed(None, Malformed::NoStatus);
        };
        let status_address = start + u64::from(length) - 1;
        if length > 1 {
            writable.push((start, length - 1));
        }

        let Some((kind, sector)) = take_header(&mut readable, memory) else {
            return failed(Some(status_address), Malformed::Header);
        };
        let (kind, data) = match kind {
            TYPE_READ => (Kind::Read { sector }, writable),
            TYPE_WRITE => (Kind::Write { sector }, readable),
            TYPE_FLUSH => (Kind::Flush, Vec::new()),
            TYPE_GET_ID => (Kind::GetId, writable),
            other => (Kind::Unsupported(other), Vec::new()),
        };
        Ok(Self {
            kind,
            status_address,
            data,
        })
    }

    /// Bytes of data.
    pub fn data_length(&self) -> u64 {
        self.data.iter().map(|(_, length)| u64::from(*length)).sum()
    }

    /// Bytes that go between disk and memory.
    pub fn transferred(&self) -> u64 {
        match self.kind {
            Kind::Read { .. } | Kind::Write { .. } => self.data_length(),
            Kind::Flush | Kind::GetId | Kind::Unsupported(_) => 0,
        }
    }

    /// The data buffers in host memory.
    pub fn scatter<'a>(&self, memory: &'a GuestMemory) -> Option<Scatter<'a>> {
        let ranges = self
            .data
            .iter()
            .map(|(start, length)| (*start, *length as usize));
        Scatter::resolve(memory, ranges).ok()
    }

    /// Answers with the serial number; the guest has to give room for all of it.
    pub fn write_id(&self, memory: &GuestMemory, id: &[u8; SERIAL_LENGTH]) -> (Status, u32) {
        let mut written = 0;
        for (start, length) in &self.data {
            let rest = &id[written..];
            let part = &rest[..rest.len().min(*length as usize)];
            if memory.write_slice(part, GuestAddress(*start)).is_err() {
                break;
            }
            written += part.len();
        }
        let status = if written == id.len() {
            Status::Ok
        } else {
            Status::Failed
        };
        (status, u32::try_from(written).unwrap_or(0))
    }
}

/// Takes the header off the readable bytes: type and sector.
fn take_header(readable: &mut Vec<(u64, u32)>, memory: &GuestMemory) -> Option<(u32, u64)> {
    let mut header = [0u8; HEADER_LENGTH];
    let mut filled = 0;
    let mut whole_ranges = 0;
    for range in readable.iter_mut() {
        let count = (header.len() - filled).min(range.1 as usize);
        memory
            .read_slice(&mut header[filled..filled + count], GuestAddress(range.0))
            .ok()?;
        filled += count;
        let count = u32::try_from(count).ok()?;
        range.0 += u64::from(count);
        range.1 -= count;
        if range.1 == 0 {
            whole_ranges += 1;
        }
        if filled == header.len() {
            break;
        }
    }
    if filled < header.len() {
        return None;
    }
    readable.drain(..whole_ranges);
    let (kind, rest) = header.split_first_chunk::<4>()?;
    let sector = rest.last_chunk::<8>()?;
    Some((u32::from_le_bytes(*kind), u64::from_le_bytes(*sector)))
}
