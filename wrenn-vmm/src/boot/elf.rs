//! Loads an ELF kernel: reads its segments into guest memory.
//!
//! They could be mapped from the file, which copies nothing. But a boot touches most of a
//! kernel and patches much of it, and what is mapped from a file comes in small pages, each
//! with an exit from the guest, and again when it is written. Read into memory of the
//! guest's own, the kernel lies in huge pages where the host gives them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::boot::kernel::LoadedKernel;
use crate::layout;
use crate::memory::{GuestMemory, host_length};

const HEADER_LENGTH: usize = 64;
const SEGMENT_LENGTH: usize = 56;
/// A kernel has about five.
const SEGMENTS_MAX: u16 = 64;

const CLASS_64_BIT: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;

/// The file is no kernel that can be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It cannot be read, or ends early.
    #[error("cannot read {what}")]
    Read {
        /// Which part.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// For another processor.
    #[error("it is not a 64-bit x86 ELF file")]
    Kind,
    /// Impossible numbers.
    #[error("its {0} makes no sense")]
    Header(&'static str),
    /// Does not fit.
    #[error(
        "the segment of {size} bytes at {start:#x} does not fit guest memory above the first MiB"
    )]
    Place {
        /// Guest address.
        start: u64,
        /// Size in memory.
        size: u64,
    },
}

struct Segment {
    offset: u64,
    start: u64,
    file_size: u64,
    memory_size: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    // Offsets are constants within arrays of constant size.
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

/// Loads all segments.
///
/// # Errors
/// If the file is damaged or does not fit guest memory.
pub fn load(memory: &GuestMemory, file: &mut File) -> Result<LoadedKernel, ElfError> {
    let mut header = [0u8; HEADER_LENGTH];
    file.read_exact_at(&mut header, 0)
        .map_err(|source| ElfError::Read {
            what: "its header",
            source,
        })?;
    let machine = u16::from_le_bytes(number(&header, 18));
    if header[4] != CLASS_64_BIT || header[5] != LITTLE_ENDIAN || machine != MACHINE_X86_64 {
        return Err(ElfError::Kind);
    }
    let entry = u64::from_le_bytes(number(&header, 24));
    let mut end = 0;
    for segment in segments(file, &header)? {
        place(memory, file, &segment)?;
        end = end.max(segment.start + segment.memory_size);
    }
    if entry < layout::HIGH_MEMORY_START || entry >= end {
        return Err(ElfError::Header("entry point"));
    }
    Ok(LoadedKernel {
        entry,
        end,
        header: None,
    })
}

fn segments(file: &File, header: &[u8; HEADER_LENGTH]) -> Result<Vec<Segment>, ElfError> {
    let table = u64::from_le_bytes(number(header, 32));
    let entry_length = u16::from_le_bytes(number(header, 54));
    let count = u16::from_le_bytes(number(header, 56));
    if usize::from(entry_length) != SEGMENT_LENGTH || count > SEGMENTS_MAX {
        return Err(ElfError::Header("program header table"));
    }
    let mut segments = Vec::new();
    for index in 0..u64::from(count) {
        let mut bytes = [0u8; SEGMENT_LENGTH];
        let at = table
            .checked_add(index * SEGMENT_LENGTH as u64)
            .ok_or(ElfError::Header("program header table"))?;
        file.read_exact_at(&mut bytes, at)
            .map_err(|source| ElfError::Read {
                what: "its program headers",
                source,
            })?;
        if u32::from_le_bytes(number(&bytes, 0)) == SEGMENT_LOAD {
            segments.push(Segment {
                offset: u64::from_le_bytes(number(&bytes, 8)),
                start: u64::from_le_bytes(number(&bytes, 24)),
                file_size: u64::from_le_bytes(number(&bytes, 32)),
                memory_size: u64::from_le_bytes(number(&bytes, 40)),
            });
        }
    }
    Ok(segments)
}

/// Reads one segment into guest memory.
fn place(memory: &GuestMemory, file: &mut File, segment: &Segment) -> Result<(), ElfError> {
    let (start, size) = (segment.start, segment.memory_size);
    let fits = start >= layout::HIGH_MEMORY_START
        && segment.file_size <= size
        && vm_memory::GuestMemoryBackend::check_range(
            memory,
            GuestAddress(start),
            host_length(size),
        );
    if !fits {
        return Err(ElfError::Place { start, size });
    }
    let read = |source| ElfError::Read {
        what: "a segment",
        source,
    };
    file.seek(SeekFrom::Start(segment.offset)).map_err(read)?;
    // Memory comes as zeros, so that only the part in the file needs work.
    memory
        .read_exact_volatile_from(GuestAddress(start), file, host_length(segment.file_size))
        .map_err(|error| match error {
            GuestMemoryError::IOError(source) => read(source),
            // The place is checked, so that it is the file that ends early.
            other => read(io::Error::new(io::ErrorKind::UnexpectedEof, other)),
        })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    use super::*;
    use crate::memory::{HugePages, allocate};

    /// An ELF file with these segments: offset, start, size in file, size in memory.
    pub(crate) fn elf(entry: u64, segments: &[[u64; 4]]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LENGTH];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        bytes[24..32].copy_from_slice(&entry.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        for [offset, start, file_size, memory_size] in segments {
            let mut entry = [0u8; SEGMENT_LENGTH];
            entry[..4].copy_from_slice(&SEGMENT_LOAD.to_le_bytes());
            for (at, value) in [(8, offset), (24, start), (32, file_size), (40, memory_size)] {
                entry[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            bytes.extend_from_slice(&entry);
        }
        bytes.resize(0x4000, 0);
        for (index, byte) in bytes.iter_mut().enumerate().skip(0x1000) {
            *byte = u8::try_from(index / 256 % 251).unwrap();
        }
        bytes
    }

    fn load_bytes(bytes: &[u8]) -> (GuestMemory, Result<LoadedKernel, ElfError>) {
        let memory = allocate(4, HugePages::None, true).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let loaded = load(&memory, &mut file);
        (memory, loaded)
    }

    fn content(memory: &GuestMemory, start: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
        bytes
    }

    #[test]
    fn segments_arrive_at_their_places() {
        // One of whole pages and a bit, one that is not aligned.
        let file = elf(
            0x10_0000,
            &[
                [0x1000, 0x10_0000, 0x1234, 0x3000],
                [0x3010, 0x20_0008, 0x20, 0x20],
            ],
        );
        let (memory, loaded) = load_bytes(&file);
        let loaded = loaded.unwrap();
        assert_eq!((loaded.entry, loaded.end), (0x10_0000, 0x20_0028));
        assert_eq!(content(&memory, 0x10_0000, 0x1234), file[0x1000..0x2234]);
        assert_eq!(content(&memory, 0x10_1234, 0x1000), [0; 0x1000]);
        assert_eq!(content(&memory, 0x20_0008, 0x20), file[0x3010..0x3030]);
        // A snapshot must not take any of it for unchanged.
        let region = memory.iter().next().unwrap();
        for page in [0x10_0000, 0x10_1000, 0x20_0000] {
            assert!(
                GuestMemoryRegion::bitmap(region).dirty_at(page),
                "{page:#x}"
            );
        }
    }

    #[test]
    fn what_the_guest_writes_stays_out_of_the_file() {
        let memory = allocate(4, HugePages::None, false).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let bytes = elf(0x10_0000, &[[0x1000, 0x10_0000, 0x1000, 0x1000]]);
        file.write_all(&bytes).unwrap();
        load(&memory, &mut file).unwrap();
        memory
            .write_slice(&[0xee; 64], GuestAddress(0x10_0000))
            .unwrap();
        let mut after = vec![0; bytes.len()];
        file.read_exact_at(&mut after, 0).unwrap();
        assert_eq!(after, bytes);
        assert_eq!(content(&memory, 0x10_0000, 64), [0xee; 64]);
    }

    #[test]
    fn impossible_files_are_refused() {
        let good = [0x1000, 0x10_0000, 0x1000, 0x1000];
        let place = |segment| load_bytes(&elf(0x10_0000, &[segment])).1;
        assert!(place(good).is_ok());
        // Below the first MiB, beyond memory, wrapping around, larger in file than in
        // memory.
        for segment in [
            [0x1000, 0, 0x1000, 0x1000],
            [0x1000, 0x3f_f000, 0x1000, 0x2000],
            [0x1000, u64::MAX - 0xfff, 0x1000, 0x1000],
            [0x1000, 0x10_0000, 0x1000, 0x1000 - 1],
            [0x1000, 0x10_0000, 1, u64::MAX],
        ] {
            assert!(
                matches!(place(segment), Err(ElfError::Place { .. })),
                "{segment:x?}"
            );
        }
        // Beyond the end of the file.
        assert!(matches!(
            place([0x3000, 0x10_0000, 0x2000, 0x2000]),
            Err(ElfError::Read { .. })
        ));
        assert!(place([u64::MAX - 0xfff, 0x10_0000, 0x1000, 0x1000]).is_err());
        for entry in [0, 0x10_1000, u64::MAX] {
            assert!(matches!(
                load_bytes(&elf(entry, &[good])).1,
                Err(ElfError::Header("entry point"))
            ));
        }
    }
}
