//! Reads and writes between files and guest memory, scattered, without a copy.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::memory::GuestMemory;
use crate::virtio::StopFlag;

/// A piece of guest memory.
pub type GuestSlice<'a> = VolatileSlice<'a, BS<'a, Option<AtomicBitmap>>>;

/// Where the pieces of one transfer lie.
pub struct Scatter<'a> {
    slices: Vec<GuestSlice<'a>>,
}

/// How far a transfer got.
#[derive(Debug)]
pub struct Transferred {
    /// Bytes that were moved.
    pub bytes: usize,
    /// Why it was not all of them.
    pub error: Option<io::Error>,
    /// Whether it was to stop before the end.
    pub stopped: bool,
}

/// The most that one call moves: what a device does before it looks whether it is to stop.
const CHUNK: usize = 4 << 20;

impl<'a> Scatter<'a> {
    /// Resolves guest ranges. Each must lie in guest memory in one piece.
    ///
    /// # Errors
    /// If one does not.
    pub fn resolve(
        memory: &'a GuestMemory,
        ranges: impl Iterator<Item = (u64, usize)>,
    ) -> Result<Self, vm_memory::GuestMemoryError> {
        let slices = ranges
            .filter(|(_, length)| *length > 0)
            .map(|(start, length)| {
                GuestMemoryBackend::get_slice(memory, GuestAddress(start), length)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { slices })
    }

    /// All bytes together.
    pub fn length(&self) -> usize {
        self.slices.iter().map(VolatileSlice::len).sum()
    }

    /// The `iovec`s of everything past `skip` bytes, and of no more than `most`.
    fn vectors(&self, mut skip: usize, mut most: usize) -> Vec<libc::iovec> {
        let mut vectors = Vec::with_capacity(self.slices.len());
        for slice in &self.slices {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let length = (slice.len() - skip).min(most);
            if length == 0 {
                break;
            }
            let pointer = slice.ptr_guard_mut().as_ptr();
            vectors.push(libc::iovec {
                iov_base: pointer.wrapping_add(skip).cast(),
                iov_len: length,
            });
            skip = 0;
            most -= length;
        }
        vectors
    }

    /// Records that the first `count` bytes of guest memory here have changed.
    fn mark_dirty(&self, mut count: usize) {
        for slice in &self.slices {
            if count == 0 {
                return;
            }
            let here = count.min(slice.len());
            slice.bitmap().mark_dirty(0, here);
            count -= here;
        }
    }

    /// Reads from `file` at `offset` until all pieces are full, or `stop` is set.
    pub fn read_from(&self, file: &File, offset: u64, stop: &StopFlag) -> Transferred {
        let done = transfer(self, offset, stop, |vectors, count, at| {
            // SAFETY: every vector points into guest memory that `self` borrows, with
            // its length; other threads may write there at the same time, which guest
            // memory allows; the descriptor is open.
            unsafe { libc::preadv64(file.as_raw_fd(), vectors, count, at) }
        });
        self.mark_dirty(done.bytes);
        done
    }

    /// Writes all pieces to `file` at `offset`, or those before `stop` is set.
    pub fn write_to(&self, file: &File, offset: u64, stop: &StopFlag) -> Transferred {
        transfer(self, offset, stop, |vectors, count, at| {
            // SAFETY: as for `read_from`, and the memory is only read.
            unsafe { libc::pwritev64(file.as_raw_fd(), vectors, count, at) }
        })
    }

    /// Reads one packet.
    ///
    /// # Errors
    /// If there is none (`WouldBlock`) or the descriptor fails.
    pub fn read_packet(&self, descriptor: RawFd) -> io::Result<usize> {
        let vectors = self.vectors(0, usize::MAX);
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: as for `read_from`.
        let read = unsafe { libc::readv(descriptor, vectors.as_ptr(), count) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        self.mark_dirty(read);
        Ok(read)
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// If the descriptor does not take it.
    pub fn write_packet(&self, descriptor: RawFd) -> io::Result<usize> {
        let vectors = self.vectors(0, usize::MAX);
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: as for `write_to`.
        let written = unsafe { libc::writev(descriptor, vectors.as_ptr(), count) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}

/// Repeats a positioned call until everything is moved, or it fails, or the file ends, or it is
/// to stop.
fn transfer(
    scatter: &Scatter<'_>,
    offset: u64,
    stop: &StopFlag,
    mut call: impl FnMut(*const libc::iovec, libc::c_int, i64) -> isize,
) -> Transferred {
    let total = scatter.length();
    let mut bytes = 0;
    while bytes < total {
        if stop.is_set() {
            return Transferred {
                bytes,
                error: None,
                stopped: true,
            };
        }
        let vectors = scatter.vectors(bytes, CHUNK);
        // Chains are far shorter than the kernel's limit of 1024 vectors.
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        let Ok(at) = i64::try_from(offset + bytes as u64) else {
            return Transferred {
                bytes,
                error: Some(io::ErrorKind::InvalidInput.into()),
                stopped: false,
            };
        };
        match usize::try_from(call(vectors.as_ptr(), count, at)) {
            Ok(0) => {
                return Transferred {
                    bytes,
                    error: Some(io::ErrorKind::UnexpectedEof.into()),
                    stopped: false,
                };
            }
            Ok(moved) => bytes += moved,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Transferred {
                        bytes,
                        error: Some(error),
                        stopped: false,
                    };
                }
            }
        }
    }
    Transferred {
        bytes,
        error: None,
        stopped: false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;
    use crate::memory::{HugePages, allocate};

    #[test]
    fn scattered_read_and_write_keep_order() {
        let memory = allocate(1, HugePages::None, true).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let ranges = [(0x2000, 3), (0x5000, 0), (0x1000, 4)];
        let scatter = Scatter::resolve(&memory, ranges.into_iter()).unwrap();
        let done = scatter.read_from(&file, 2, &StopFlag::default());
        assert!(done.error.is_none() && done.bytes == 7);
        let mut first = [0; 3];
        memory.read_slice(&mut first, GuestAddress(0x2000)).unwrap();
        assert_eq!(&first, b"234");

        let copy = tempfile::tempfile().unwrap();
        assert_eq!(scatter.write_to(&copy, 1, &StopFlag::default()).bytes, 7);
        let mut content = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&copy, &mut content, 0).unwrap();
        assert_eq!(&content, b"\x002345678");
    }

    #[test]
    fn end_of_file_reports_what_was_read() {
        let memory = allocate(1, HugePages::None, false).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"01234").unwrap();
        let scatter = Scatter::resolve(&memory, [(0, 3), (8, 9)].into_iter()).unwrap();
        let done = scatter.read_from(&file, 0, &StopFlag::default());
        assert_eq!(done.bytes, 5);
        assert_eq!(done.error.unwrap().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn ranges_outside_of_memory_are_refused() {
        let memory = allocate(1, HugePages::None, false).unwrap();
        for range in [(1 << 20, 1), ((1 << 20) - 1, 2), (u64::MAX, 1)] {
            assert!(Scatter::resolve(&memory, [range].into_iter()).is_err());
        }
    }

    #[test]
    fn stopped_transfer_moves_nothing_more() {
        let memory = allocate(16, HugePages::None, true).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 9 << 20]).unwrap();
        let scatter = Scatter::resolve(&memory, [(0, 9 << 20)].into_iter()).unwrap();
        let stop = StopFlag::default();
        let whole = scatter.read_from(&file, 0, &stop);
        assert_eq!((whole.bytes, whole.stopped), (9 << 20, false));
        stop.set(true);
        let none = scatter.read_from(&file, 0, &stop);
        assert_eq!((none.bytes, none.stopped), (0, true));
        assert!(none.error.is_none());
    }
}
