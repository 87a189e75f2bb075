//! Hands guest memory over to a page-fault server.
//!
//! ```text
//! VMM                                        page-fault server, listening at backend_path
//!  │ connect ──────────────────────────────▶ │
//!  │ one message: JSON array of regions ───▶ │
//!  │              with the userfaultfd       │
//!  │ keeps the connection open …             │ … so that its end tells of the VMM's end
//! ```
//!
//! The message is Firecracker's, so that one server serves both: for each region the
//! address at which the VMM has it, its size, where its contents lie in the memory file,
//! and the size of its pages, in bytes in spite of the name of the last field.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::memory::{GuestMemory, HugePages, PAGE_SIZE};
use crate::sys::userfault::Userfault;

/// A page-fault server could not be given guest memory.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// No descriptor.
    #[error(
        "cannot have page faults handled by another process (is /dev/userfaultfd in the jail, \
         and may its user write to it?)"
    )]
    Create(#[source] io::Error),
    /// Not this memory.
    #[error("cannot register guest memory with userfaultfd")]
    Register(#[source] io::Error),
    /// Nobody listens.
    #[error("cannot connect to the page-fault server at {path}")]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The message.
    #[error("cannot describe guest memory to the page-fault server")]
    Describe(#[source] serde_json::Error),
    /// It was not taken.
    #[error("cannot send guest memory to the page-fault server")]
    Send(#[source] io::Error),
}

/// One region of guest memory, as the server is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Region {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: usize,
    page_size_kib: usize,
}

/// What keeps the server's work valid. The descriptor stays open here as well: without
/// it, pages would silently become zeros should the server die, instead of waiting.
#[derive(Debug)]
pub struct Pager {
    _userfault: Userfault,
    _connection: UnixStream,
}

impl Pager {
    /// Gives `memory`, which must be untouched, to the server that listens at `path`.
    ///
    /// # Errors
    /// If this process may not, or nobody listens.
    pub fn hand_over(
        memory: &GuestMemory,
        huge_pages: HugePages,
        path: &Path,
    ) -> Result<Self, PagerError> {
        let userfault = Userfault::new().map_err(PagerError::Create)?;
        userfault.register(memory).map_err(PagerError::Register)?;
        let regions =
            serde_json::to_vec(&describe(memory, huge_pages).map_err(PagerError::Register)?)
                .map_err(PagerError::Describe)?;
        let connection = UnixStream::connect(path).map_err(|source| PagerError::Connect {
            path: path.into(),
            source,
        })?;
        let sent = connection
            .send_with_fd(regions.as_slice(), userfault.as_raw_fd())
            .map_err(|error| PagerError::Send(io::Error::from_raw_os_error(error.errno())))?;
        if sent < regions.len() {
            return Err(PagerError::Send(io::ErrorKind::WriteZero.into()));
        }
        Ok(Self {
            _userfault: userfault,
            _connection: connection,
        })
    }
}

fn describe(memory: &GuestMemory, huge_pages: HugePages) -> io::Result<Vec<Region>> {
    let page_size = match huge_pages {
        HugePages::None | HugePages::Transparent => PAGE_SIZE,
        HugePages::Size2Mib => 2 << 20,
    };
    let mut offset = 0;
    memory
        .iter()
        .map(|region| {
            let start = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(io::Error::other)?;
            let described = Region {
                base_host_virt_addr: start as u64,
                size: region.len(),
                offset,
                page_size,
                page_size_kib: page_size,
            };
            offset += region.len();
            Ok(described)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::memory::allocate;

    #[test]
    fn regions_follow_each_other_in_the_file() {
        let memory = allocate(3072 + 8, HugePages::None, false).unwrap();
        let regions = describe(&memory, HugePages::None).unwrap();
        let places: Vec<_> = regions.iter().map(|r| (r.offset, r.size)).collect();
        assert_eq!(places, [(0, 3 << 30), (3 << 30, 8 << 20)]);
        let json = serde_json::to_value(&regions).unwrap();
        assert_eq!(json[1]["page_size"], 4096);
        assert_eq!(json[1]["page_size_kib"], 4096);
        assert!(json[0]["base_host_virt_addr"].as_u64().unwrap() > 0);
    }

    #[test]
    fn server_gets_regions_and_descriptor_in_one_message() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pager");
        let listener = UnixListener::bind(&path).unwrap();
        let memory = allocate(1, HugePages::None, false).unwrap();
        let pager = match Pager::hand_over(&memory, HugePages::None, &path) {
            Ok(pager) => pager,
            Err(PagerError::Create(error)) => {
                // Not as root, or in a kernel without it.
                eprintln!("SKIPPED: no userfaultfd here: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let (stream, _) = listener.accept().unwrap();
        let mut message = [0; 4096];
        let (length, file) = stream.recv_with_fd(&mut message[..]).unwrap();
        let regions: serde_json::Value = serde_json::from_slice(&message[..length]).unwrap();
        assert_eq!(regions[0]["size"], 1 << 20);
        assert!(file.is_some());
        // The VMM's end is the connection's end, and nothing before it.
        stream.set_nonblocking(true).unwrap();
        let waiting = std::io::Read::read(&mut &stream, &mut message).unwrap_err();
        assert_eq!(waiting.kind(), io::ErrorKind::WouldBlock);
        drop(pager);
        assert_eq!(std::io::Read::read(&mut &stream, &mut message).unwrap(), 0);
    }

    #[test]
    fn nobody_listening_is_said() {
        let memory = allocate(1, HugePages::None, false).unwrap();
        let error = Pager::hand_over(&memory, HugePages::None, "/nonexistent/pager".as_ref());
        assert!(matches!(
            error,
            Err(PagerError::Connect { .. } | PagerError::Create(_))
        ));
    }
}
