//! What a VMM does with a pager, without a VM: for tests and benchmarks.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::handshake::timespec;
use super::sys::{AnonymousMemory, Event, FileMapping, Filled, SourceAddress, Userfaultfd};
use super::{HUGE_PAGE_SIZE, PAGE_SIZE};

/// Memory with nothing in it, watched by a userfaultfd. A thread that touches a page waits
/// until somebody fills it.
#[derive(Debug)]
pub struct GuestMemory {
    // First, so that nobody waits for pages of memory that goes away.
    userfaultfd: Userfaultfd,
    memory: AnonymousMemory,
    page_size: u64,
}

/// A part of [`GuestMemory`], and where its contents are in the saved memory.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Where it begins.
    pub at: u64,
    /// How long it is.
    pub size: u64,
    /// Where its contents are.
    pub offset: u64,
}

impl GuestMemory {
    /// Maps and watches `length` bytes of ordinary pages.
    ///
    /// # Errors
    /// If the kernel refuses, as it does for others than root.
    pub fn new(length: u64) -> io::Result<Self> {
        Self::watch(
            AnonymousMemory::new(index(length), index(PAGE_SIZE))?,
            PAGE_SIZE,
        )
    }

    /// As [`GuestMemory::new`], of huge pages.
    ///
    /// # Errors
    /// If the kernel refuses, as it does where none are reserved.
    pub fn huge(length: u64) -> io::Result<Self> {
        Self::watch(AnonymousMemory::huge(index(length))?, HUGE_PAGE_SIZE)
    }

    /// Says that it has huge pages, and has not. A pager works with it as with true ones.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn as_if_huge(length: u64) -> io::Result<Self> {
        let memory = AnonymousMemory::new(index(length), index(HUGE_PAGE_SIZE))?;
        Self::watch(memory, HUGE_PAGE_SIZE)
    }

    fn watch(memory: AnonymousMemory, page_size: u64) -> io::Result<Self> {
        let this = Self {
            userfaultfd: Userfaultfd::create()?,
            memory,
            page_size,
        };
        this.userfaultfd.register(&this.memory)?;
        Ok(this)
    }

    /// Connects and hands all of it over. The pager takes the end of the connection for the
    /// end of the VM, if both are one process.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn hand_over(&self, socket: &Path) -> io::Result<UnixStream> {
        let size = self.memory.length();
        let whole = Part {
            at: 0,
            size,
            offset: 0,
        };
        let message = self.describe(&[whole]);
        send(socket, message.as_bytes(), &[self.userfaultfd.as_fd()])
    }

    /// The message that names these parts as regions.
    #[must_use]
    pub fn describe(&self, parts: &[Part]) -> String {
        let regions: Vec<_> = parts
            .iter()
            .map(|part| {
                serde_json::json!({
                    "base_host_virt_addr": self.memory.address() + part.at,
                    "size": part.size,
                    "offset": part.offset,
                    "page_size": self.page_size,
                    "page_size_kib": self.page_size,
                })
            })
            .collect();
        serde_json::Value::from(regions).to_string()
    }

    /// The eight bytes at this offset, a multiple of eight.
    #[must_use]
    pub fn load(&self, offset: u64) -> u64 {
        self.memory.load(index(offset))
    }

    /// Writes eight bytes.
    pub fn store(&self, offset: u64, word: u64) {
        self.memory.store(index(offset), word);
    }

    /// Gives a range up, as a balloon does. Waits until the pager knows.
    ///
    /// # Errors
    /// If the range is not made of whole pages.
    pub fn remove(&self, offset: u64, length: u64) -> io::Result<()> {
        self.memory.remove(index(offset), index(length))
    }

    /// Fills pages, as the barest of pagers would.
    ///
    /// # Errors
    /// If they are not missing.
    pub fn fill(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.fill_with(offset, SourceAddress::of(bytes), bytes.len() as u64)
    }

    /// As [`GuestMemory::fill`], out of a file.
    ///
    /// # Errors
    /// If the pages are not missing.
    pub fn fill_from(
        &self,
        offset: u64,
        file: &MemoryFile,
        at: u64,
        length: u64,
    ) -> io::Result<()> {
        self.fill_with(offset, file.0.address(at), length)
    }

    fn fill_with(&self, offset: u64, source: SourceAddress, length: u64) -> io::Result<()> {
        let address = self.memory.address() + offset;
        match self.userfaultfd.copy(address, source, length) {
            Filled::Bytes(filled) if filled == length => Ok(()),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    /// The offset of a page that somebody waits for, if there is one in time.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn fault(&self, limit: Duration) -> io::Result<Option<u64>> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waited = [PollFd::new(&self.userfaultfd, PollFlags::IN)];
            poll(&mut waited, Some(&timespec(left)))?;
            match self.userfaultfd.read()? {
                Some(Event::Fault(address)) => return Ok(Some(address - self.memory.address())),
                None if left.is_zero() => return Ok(None),
                _ => {}
            }
        }
    }
}

impl AsFd for GuestMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.userfaultfd.as_fd()
    }
}

/// A memory file that is mapped as a pager has it: read-only, one copy for all.
#[derive(Debug)]
pub struct MemoryFile(FileMapping);

impl MemoryFile {
    /// Maps all of it.
    ///
    /// # Errors
    /// If the file cannot be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        FileMapping::new(&file, index(length)).map(Self)
    }
}

/// A memory file that is mapped as a VMM has it that needs no pager: each page that is
/// written becomes its own.
#[derive(Debug)]
pub struct PrivateMemory(AnonymousMemory);

impl PrivateMemory {
    /// Maps all of it.
    ///
    /// # Errors
    /// If the file cannot be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        AnonymousMemory::over_file(&file, index(length)).map(Self)
    }

    /// The eight bytes at this offset, a multiple of eight.
    #[must_use]
    pub fn load(&self, offset: u64) -> u64 {
        self.0.load(index(offset))
    }

    /// Writes eight bytes, which stay out of the file.
    pub fn store(&self, offset: u64, word: u64) {
        self.0.store(index(offset), word);
    }
}

/// Connects and sends this message with these descriptors, whatever they are.
///
/// # Errors
/// If nobody listens.
pub fn send(
    socket: &Path,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let message = [IoSlice::new(message)];
    sendmsg(&stream, &message, &mut control, SendFlags::NOSIGNAL)?;
    Ok(stream)
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
