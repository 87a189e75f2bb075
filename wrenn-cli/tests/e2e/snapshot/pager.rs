//! A page-fault server for tests: serves a memory file, page by page.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::sys;

const EVENT_LENGTH: usize = 32;
const EVENT_PAGE_FAULT: u8 = 0x12;

/// The running server. It ends when the VMM ends.
pub(super) struct Pager(JoinHandle<u64>);

struct Region {
    start: u64,
    size: u64,
    offset: u64,
    page_size: u64,
}

impl Pager {
    /// Serves the first VMM that connects to `socket` with the pages of `memory`.
    pub(super) fn start(socket: &Path, memory: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let memory = File::open(memory).unwrap();
        Self(std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let (regions, userfault) = receive(&stream);
            serve(&stream, &userfault, &regions, &memory)
        }))
    }

    /// Waits until the server has ended, and says how many faults it served.
    pub(super) fn ended(self) -> u64 {
        self.0.join().unwrap()
    }
}

fn receive(stream: &UnixStream) -> (Vec<Region>, OwnedFd) {
    let mut text = [0; 4096];
    let mut space = cmsg_space!([i32; 1]);
    let mut buffers = [IoSliceMut::new(&mut text)];
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut buffers,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .unwrap();
    let descriptor = message
        .cmsgs()
        .unwrap()
        .find_map(|control| match control {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        })
        .expect("a descriptor comes with the regions");
    let length = message.bytes;
    let regions: Vec<serde_json::Value> = serde_json::from_slice(&text[..length]).unwrap();
    let regions = regions
        .iter()
        .map(|region| {
            let number = |name: &str| region[name].as_u64().unwrap();
            assert_eq!(number("page_size_kib"), number("page_size"));
            Region {
                start: number("base_host_virt_addr"),
                size: number("size"),
                offset: number("offset"),
                page_size: number("page_size"),
            }
        })
        .collect();
    (regions, sys::own(descriptor))
}

fn serve(stream: &UnixStream, userfault: &OwnedFd, regions: &[Region], memory: &File) -> u64 {
    let mut served = 0;
    loop {
        let mut ready = [
            PollFd::new(userfault.as_fd(), PollFlags::POLLIN),
            PollFd::new(stream.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ready, PollTimeout::NONE).unwrap();
        if ready[1].any().unwrap() {
            // The VMM is gone.
            return served;
        }
        let mut event = [0; EVENT_LENGTH];
        match nix::unistd::read(userfault, &mut event) {
            Ok(EVENT_LENGTH) if event[0] == EVENT_PAGE_FAULT => {}
            Ok(_) => continue,
            Err(Errno::EAGAIN) => continue,
            Err(errno) => panic!("{errno}"),
        }
        let address = u64::from_ne_bytes(event[16..24].try_into().unwrap());
        let region = regions
            .iter()
            .find(|region| (region.start..region.start + region.size).contains(&address))
            .expect("the fault is in guest memory");
        let within = (address - region.start) / region.page_size * region.page_size;
        let mut page = vec![0; usize::try_from(region.page_size).unwrap()];
        memory
            .read_exact_at(&mut page, region.offset + within)
            .unwrap();
        match sys::place(userfault, region.start + within, &page) {
            Ok(()) => served += 1,
            // Its process is ending.
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
