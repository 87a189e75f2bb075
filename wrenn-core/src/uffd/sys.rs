//! The ioctls of `linux/userfaultfd.h` and the mappings that they work with.
//!
//! The kernel's header is a stable interface; of the crates that wrap it, each runs bindgen
//! and with it libclang at build time.
//!
//! A source mapping is an address and a length here and never a slice: only the kernel
//! reads it, on behalf of `UFFDIO_COPY`. A file that was cut short under the mapping is
//! then an `EFAULT` of that call and not a `SIGBUS`.

#![allow(unsafe_code, reason = "userfaultfd has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

const UFFD_API: u64 = 0xAA;
const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;

/// `struct uffd_msg`, whose payload is up to three words.
const MESSAGE_LENGTH: usize = 32;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

mod ioctl {
    use super::{UffdioApi, UffdioCopy, UffdioRange, UffdioRegister, UffdioZeropage};

    nix::ioctl_readwrite!(api, 0xAA, 0x3F, UffdioApi);
    nix::ioctl_readwrite!(register, 0xAA, 0x00, UffdioRegister);
    nix::ioctl_read!(wake, 0xAA, 0x02, UffdioRange);
    nix::ioctl_readwrite!(copy, 0xAA, 0x03, UffdioCopy);
    nix::ioctl_readwrite!(zeropage, 0xAA, 0x04, UffdioZeropage);
}

/// The numbers of the ioctls that a pager makes, for its seccomp filter.
pub(super) const PAGER_IOCTLS: [u64; 3] = [
    nix::request_code_read!(0xAA, 0x02, size_of::<UffdioRange>()),
    nix::request_code_readwrite!(0xAA, 0x03, size_of::<UffdioCopy>()),
    nix::request_code_readwrite!(0xAA, 0x04, size_of::<UffdioZeropage>()),
];

/// What the kernel says about watched memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody waits for the page at this address.
    Fault(u64),
    /// This range is given up by its owner and reads as zero from now on.
    Removed { start: u64, end: u64 },
    /// This range is not mapped any more.
    Unmapped,
    /// The owner did something that a VMM does not do: fork, or move its memory.
    Unexpected(&'static str),
}

/// How far a call came that fills pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// All pages, or this many bytes of them.
    Bytes(u64),
    /// The first page is there already.
    Present,
    /// An event must be read first.
    Changing,
    /// The process is gone.
    Gone,
    /// The range is not one watched mapping.
    NotWatched,
    /// The source cannot be read.
    SourceFault,
    /// Anything else.
    Failed(Errno),
}

/// A userfaultfd.
#[derive(Debug)]
pub(super) struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Takes a descriptor that is known to be one, see [`super::handshake`].
    pub(super) fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Makes one that watches the calling process, and hears of removed ranges.
    pub(super) fn create() -> io::Result<Self> {
        let flags = rustix::mm::UserfaultfdFlags::CLOEXEC | rustix::mm::UserfaultfdFlags::NONBLOCK;
        // SAFETY: a userfaultfd by itself does nothing; what it does to memory is the
        // matter of `register`.
        let this = Self(unsafe { rustix::mm::userfaultfd(flags) }?);
        let mut request = UffdioApi {
            api: UFFD_API,
            features: UFFD_FEATURE_EVENT_REMOVE,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_API reads and writes one `uffdio_api`, borrowed exclusively.
        unsafe { ioctl::api(this.raw(), &raw mut request) }?;
        Ok(this)
    }

    /// Watches this memory for missing pages.
    pub(super) fn register(&self, memory: &AnonymousMemory) -> io::Result<()> {
        let mut request = UffdioRegister {
            range: UffdioRange {
                start: memory.address(),
                len: memory.length(),
            },
            mode: UFFDIO_REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`, borrowed
        // exclusively. The memory it names holds no Rust value but atomics, so it does not
        // matter who fills it, and when.
        unsafe { ioctl::register(self.raw(), &raw mut request) }?;
        Ok(())
    }

    /// The next event, or `None` if there is none.
    pub(super) fn read(&self) -> io::Result<Option<Event>> {
        let mut message = [0; MESSAGE_LENGTH];
        let length = match rustix::io::read(&self.0, &mut message) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if length != MESSAGE_LENGTH {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let [_, first, second, _] = words(&message);
        Ok(Some(match message[0] {
            EVENT_PAGEFAULT => Event::Fault(second),
            EVENT_REMOVE => Event::Removed {
                start: first,
                end: second,
            },
            EVENT_UNMAP => Event::Unmapped,
            EVENT_REMAP => Event::Unexpected("moved its memory"),
            EVENT_FORK => {
                #[allow(clippy::cast_possible_truncation, reason = "the field has 32 bits")]
                let descriptor = first as u32;
                close_forked(descriptor.cast_signed());
                Event::Unexpected("forked")
            }
            _ => Event::Unexpected("reported an event that no kernel reports"),
        }))
    }

    /// Fills missing pages with what stands at `source`, and wakes who waits for them.
    pub(super) fn copy(&self, destination: u64, source: SourceAddress, length: u64) -> Filled {
        let mut request = UffdioCopy {
            dst: destination,
            src: source.0,
            len: length,
            mode: 0,
            copy: 0,
        };
        // SAFETY: UFFDIO_COPY reads and writes one `uffdio_copy`, borrowed exclusively. The
        // kernel reads `src` as on behalf of this process and says EFAULT where it cannot.
        // It writes pages only that are missing in memory that its owner gave away to be
        // filled, which holds no Rust value of ours.
        let result = unsafe { ioctl::copy(self.raw(), &raw mut request) };
        filled(result, length, request.copy)
    }

    /// Fills missing pages with zeros, and wakes who waits for them.
    pub(super) fn zero(&self, destination: u64, length: u64) -> Filled {
        let mut request = UffdioZeropage {
            range: UffdioRange {
                start: destination,
                len: length,
            },
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: UFFDIO_ZEROPAGE reads and writes one `uffdio_zeropage`, borrowed
        // exclusively, and fills missing pages as UFFDIO_COPY does.
        let result = unsafe { ioctl::zeropage(self.raw(), &raw mut request) };
        filled(result, length, request.zeropage)
    }

    /// Wakes who waits for pages of this range.
    pub(super) fn wake(&self, start: u64, length: u64) -> io::Result<()> {
        let mut range = UffdioRange { start, len: length };
        // SAFETY: UFFDIO_WAKE reads one `uffdio_range` (its number says otherwise, by an
        // old mistake), borrowed exclusively; it changes no memory.
        unsafe { ioctl::wake(self.raw(), &raw mut range) }?;
        Ok(())
    }

    fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn words(message: &[u8; MESSAGE_LENGTH]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(message.chunks_exact(8)) {
        *word = bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    words
}

fn close_forked(descriptor: RawFd) {
    if descriptor > 2 {
        // SAFETY: with a fork event the kernel has just put this descriptor into our table
        // for the reader of the event, so it is open and nobody else's. That the message
        // comes from a userfaultfd was checked when it was received.
        drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    }
}

fn filled(result: nix::Result<i32>, asked: u64, done: i64) -> Filled {
    match result {
        Ok(_) => Filled::Bytes(asked),
        Err(Errno::EAGAIN) => match u64::try_from(done) {
            Ok(done) if done > 0 => Filled::Bytes(done),
            _ => Filled::Changing,
        },
        Err(Errno::EEXIST) => Filled::Present,
        Err(Errno::ESRCH) => Filled::Gone,
        Err(Errno::ENOENT | Errno::EINVAL) => Filled::NotWatched,
        Err(Errno::EFAULT) => Filled::SourceFault,
        Err(errno) => Filled::Failed(errno),
    }
}

/// Where `UFFDIO_COPY` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourceAddress(u64);

impl SourceAddress {
    /// Bytes of our own, which outlive the call that they are given to.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(bytes.as_ptr().expose_provenance() as u64)
    }
}

/// A file that the kernel can read at addresses of ours.
#[derive(Debug)]
pub(super) struct FileMapping {
    address: usize,
    length: usize,
}

impl FileMapping {
    /// Maps the first `length` bytes. All mappings of a file share the page cache.
    pub(super) fn new(file: &File, length: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses an address where nothing is mapped; the file is open.
        // Nobody makes a reference into the mapping, see the head of this module.
        let address = unsafe {
            rustix::mm::mmap(
                null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        Ok(Self {
            address: address.expose_provenance(),
            length,
        })
    }

    /// Where this offset of the file stands. Beyond the mapping, nowhere.
    pub(super) fn address(&self, offset: u64) -> SourceAddress {
        SourceAddress((self.address as u64).saturating_add(offset))
    }

    /// Reads a range of the file into memory, if it is not there, and maps it.
    pub(super) fn populate(&self, offset: u64, length: u64) -> io::Result<()> {
        let page = super::PAGE_SIZE;
        let start = offset / page * page;
        let within = (self.length as u64).saturating_sub(start);
        let length = (offset - start).saturating_add(length).min(within);
        let start = self.address as u64 + start;
        #[allow(clippy::cast_possible_truncation, reason = "usize has 64 bits here")]
        let (start, length) = (start as usize, length as usize);
        let pointer = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: MADV_POPULATE_READ changes no contents, and the range was cut to this
        // mapping, which lives as long as `self`. What cannot be read is an error.
        unsafe { rustix::mm::madvise(pointer, length, Advice::LinuxPopulateRead) }?;
        Ok(())
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: this value made the mapping and is the only one to know it.
        let result = unsafe {
            rustix::mm::munmap(
                std::ptr::with_exposed_provenance_mut(self.address),
                self.length,
            )
        };
        if let Err(error) = result {
            tracing::warn!(%error, "cannot unmap a file");
        }
    }
}

/// Memory such as a VMM has for its guest.
#[derive(Debug)]
pub(super) struct AnonymousMemory {
    mapped_at: usize,
    mapped_length: usize,
    address: usize,
    length: usize,
}

impl AnonymousMemory {
    /// Maps `length` bytes of ordinary pages at a multiple of `alignment`.
    pub(super) fn new(length: usize, alignment: usize) -> io::Result<Self> {
        let more = length.saturating_add(alignment);
        let mapped_at = map_anonymous(more, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
        Ok(Self {
            mapped_at,
            mapped_length: more,
            address: mapped_at.next_multiple_of(alignment),
            length,
        })
    }

    /// Maps `length` bytes of huge pages.
    pub(super) fn huge(length: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        let address = map_anonymous(length, flags)?;
        Ok(Self {
            mapped_at: address,
            mapped_length: length,
            address,
            length,
        })
    }

    /// Maps `length` bytes that are those of a file until they are written.
    pub(super) fn over_file(file: &File, length: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an address where nothing is mapped; the file is open.
        // Only atomic numbers are read there, for which all contents are valid.
        let address =
            unsafe { rustix::mm::mmap(null_mut(), length, access, MapFlags::PRIVATE, file, 0) }?;
        let address = address.expose_provenance();
        Ok(Self {
            mapped_at: address,
            mapped_length: length,
            address,
            length,
        })
    }

    pub(super) fn address(&self) -> u64 {
        self.address as u64
    }

    pub(super) fn length(&self) -> u64 {
        self.length as u64
    }

    /// The eight bytes at this offset, a multiple of eight.
    pub(super) fn load(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    pub(super) fn store(&self, offset: usize, word: u64) {
        self.word(offset).store(word, Ordering::Relaxed);
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "{offset} is no multiple of 8");
        assert!(offset < self.length, "{offset} is outside of the memory");
        let pointer = std::ptr::with_exposed_provenance_mut(self.address + offset);
        // SAFETY: the address is inside of the mapping, which lives as long as `self`, and
        // aligned to 8. All access of ours is atomic, any bytes are a valid number, and a
        // page that is missing comes before the access is done.
        unsafe { AtomicU64::from_ptr(pointer) }
    }

    /// Gives a range up, as a balloon does: it reads as zero afterwards.
    pub(super) fn remove(&self, offset: usize, length: usize) -> io::Result<()> {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "the range is outside of the memory"
        );
        let pointer = std::ptr::with_exposed_provenance_mut(self.address + offset);
        // SAFETY: the range is inside of this mapping. MADV_DONTNEED makes it zero, which
        // is as valid as any contents for atomic numbers.
        unsafe { rustix::mm::madvise(pointer, length, Advice::LinuxDontNeed) }?;
        Ok(())
    }
}

impl Drop for AnonymousMemory {
    fn drop(&mut self) {
        let pointer = std::ptr::with_exposed_provenance_mut(self.mapped_at);
        // SAFETY: this value made the mapping; the references that `word` gave out do not
        // outlive it.
        if let Err(error) = unsafe { rustix::mm::munmap(pointer, self.mapped_length) } {
            tracing::warn!(%error, "cannot unmap memory");
        }
    }
}

fn map_anonymous(length: usize, flags: MapFlags) -> io::Result<usize> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses an address where nothing is mapped.
    let address = unsafe { rustix::mm::mmap_anonymous(null_mut(), length, access, flags) }?;
    Ok(address.expose_provenance())
}
