//! How a VMM hands its memory over: one message on a Unix socket.
//!
//! ```text
//! VMM ──connect──▶ socket ──[{base_host_virt_addr, size, offset, page_size}, …]──▶ pager
//!                          └─ SCM_RIGHTS: one userfaultfd
//! ```
//!
//! Firecracker then keeps the connection open, unused, until it ends. All that comes over
//! it is from a process that is assumed to be taken over one day.

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg,
    sockopt::socket_peercred,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::layout::{Layout, LayoutError};
use super::sys::Userfaultfd;

/// Far more than the description of any number of regions that makes sense.
const LONGEST_MESSAGE: usize = 64 * 1024;
/// The most that a sender can attach to one message (`SCM_MAX_FD` of the kernel).
const MOST_DESCRIPTORS: usize = 253;

/// Why a VMM could not hand its memory over.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Nobody connected, or nothing came, in time.
    #[error("the VMM did not hand its memory over within {0:?}")]
    TimedOut(Duration),
    /// A system call was refused.
    #[error("cannot {step}")]
    Connection {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection ended before the message did.
    #[error("the VMM closed its connection before it had handed its memory over")]
    Closed,
    /// There is no end to it.
    #[error("the VMM's message is longer than {LONGEST_MESSAGE} bytes")]
    TooLong,
    /// One descriptor must be there.
    #[error("the VMM sent {0} descriptors in place of one userfaultfd")]
    Descriptors(usize),
    /// The descriptor is something else.
    #[error("the VMM sent a descriptor of {0:?} in place of a userfaultfd")]
    NotUserfaultfd(PathBuf),
    /// The message describes no memory, or not the memory that was saved.
    #[error("the VMM described memory that cannot be served")]
    Layout(#[from] LayoutError),
}

fn step(step: &'static str) -> impl Fn(io::Error) -> HandshakeError {
    move |source| HandshakeError::Connection { step, source }
}

/// The socket where one VMM is awaited. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Doorway {
    listener: UnixListener,
    path: PathBuf,
}

impl Doorway {
    /// Makes the socket, for nobody but its owner.
    pub(super) fn open(path: &Path, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let this = Self {
            listener,
            path: path.to_owned(),
        };
        this.listener.set_nonblocking(true)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        if let Some((user, group)) = owner {
            chown(path, Some(user), Some(group))?;
        }
        Ok(this)
    }

    /// Waits for the VMM. There will be no other, so the socket goes away.
    pub(super) fn accept(self, wait: &Wait<'_>) -> Result<Option<Peer>, HandshakeError> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return Peer::new(stream).map(Some),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(step("accept the VMM's connection")(error)),
            }
            if !wait.until_readable(&self.listener)? {
                return Ok(None);
            }
        }
    }
}

impl Drop for Doorway {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "cannot remove a socket");
            }
            _ => {}
        }
    }
}

/// How long to wait, and what cuts it short.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    deadline: Instant,
    limit: Duration,
    stop: &'a OwnedFd,
}

impl<'a> Wait<'a> {
    pub(super) fn new(limit: Duration, stop: &'a OwnedFd) -> Self {
        Self {
            deadline: Instant::now() + limit,
            limit,
            stop,
        }
    }

    /// False if it was cut short.
    fn until_readable(&self, descriptor: impl AsFd) -> Result<bool, HandshakeError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HandshakeError::TimedOut(self.limit));
            }
            let mut waited = [
                PollFd::new(&descriptor, PollFlags::IN),
                PollFd::new(self.stop, PollFlags::IN),
            ];
            match poll(&mut waited, Some(&timespec(left))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(step("wait for the VMM")(error.into())),
            }
            let [ready, stopped] = waited.map(|waited| !waited.revents().is_empty());
            if stopped {
                return Ok(false);
            }
            if ready {
                return Ok(true);
            }
        }
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// The process at the other end, and the connection to it.
#[derive(Debug)]
pub(super) struct Peer {
    stream: UnixStream,
    /// `None` if it is this process, which an embedding program may want.
    pidfd: Option<OwnedFd>,
}

impl Peer {
    fn new(stream: UnixStream) -> Result<Self, HandshakeError> {
        let credentials =
            socket_peercred(&stream).map_err(|error| step("ask who the VMM is")(error.into()))?;
        let pidfd = if credentials.pid == rustix::process::getpid() {
            None
        } else {
            Some(pidfd_of_peer(&stream, credentials.pid).map_err(step("get a handle on the VMM"))?)
        };
        Ok(Self { stream, pidfd })
    }

    /// Uses this handle on the VMM in place of one on whoever connected.
    pub(super) fn known_as(&mut self, pidfd: OwnedFd) {
        self.pidfd = Some(pidfd);
    }

    /// What becomes readable when the VMM ends.
    pub(super) fn ending(&self) -> PollFd<'_> {
        match &self.pidfd {
            Some(pidfd) => PollFd::new(pidfd, PollFlags::IN),
            None => PollFd::new(&self.stream, PollFlags::RDHUP),
        }
    }

    /// Ends the VMM, which must not be left waiting for pages that nobody brings.
    pub(super) fn kill(&self) -> io::Result<()> {
        match &self.pidfd {
            Some(pidfd) => match pidfd_send_signal(pidfd, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                Err(error) => Err(error.into()),
            },
            None => Ok(()),
        }
    }

    /// Receives the message. `None` if the wait was cut short.
    pub(super) fn receive(
        &self,
        saved: u64,
        wait: &Wait<'_>,
    ) -> Result<Option<(Userfaultfd, Layout)>, HandshakeError> {
        let (mut message, mut descriptors) = (Vec::new(), Vec::new());
        let layout = loop {
            if !wait.until_readable(&self.stream)? {
                return Ok(None);
            }
            if !self.receive_some(&mut message, &mut descriptors)? {
                return Err(HandshakeError::Closed);
            }
            match Layout::parse(&message, saved) {
                // A stream may cut a message in two.
                Err(LayoutError::NotRegions(error)) if error.is_eof() => {}
                parsed => break parsed?,
            }
        };
        let count = descriptors.len();
        let descriptor = descriptors
            .pop()
            .filter(|_| count == 1)
            .ok_or(HandshakeError::Descriptors(count))?;
        let descriptor = userfaultfd(descriptor)?;
        Ok(Some((descriptor, layout)))
    }

    /// False at the end of the stream.
    fn receive_some(
        &self,
        message: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<bool, HandshakeError> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        );
        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(true),
            Err(error) => return Err(step("receive the VMM's message")(error.into())),
        };
        for attached in control.drain() {
            if let RecvAncillaryMessage::ScmRights(attached) = attached {
                descriptors.extend(attached);
            }
        }
        if descriptors.len() > 1 || received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(HandshakeError::Descriptors(descriptors.len()));
        }
        message.extend_from_slice(bytes.get(..received.bytes).unwrap_or_default());
        if message.len() > LONGEST_MESSAGE {
            return Err(HandshakeError::TooLong);
        }
        Ok(received.bytes > 0)
    }
}

/// `SO_PEERPIDFD` where the kernel has it (6.5). Before, the id may in theory have gone to
/// another process by now; while the connection stands, it has not: its one end is held by
/// the process that made it.
fn pidfd_of_peer(stream: &UnixStream, pid: Pid) -> io::Result<OwnedFd> {
    if let Ok(pidfd) = getsockopt(stream, sockopt::PeerPidfd) {
        return Ok(pidfd);
    }
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut connection = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut connection, Some(&Timespec::default()))?;
    if connection[0].revents().contains(PollFlags::HUP) {
        return Err(io::ErrorKind::NotConnected.into());
    }
    Ok(pidfd)
}

/// Checks that a descriptor is what it is said to be: ioctls are made on it with rights
/// that its sender need not have.
fn userfaultfd(descriptor: OwnedFd) -> Result<Userfaultfd, HandshakeError> {
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let name = fs::read_link(link).map_err(step("look at the VMM's descriptor"))?;
    if name.as_os_str() != "anon_inode:[userfaultfd]" {
        return Err(HandshakeError::NotUserfaultfd(name));
    }
    rustix::fs::fcntl_getfl(&descriptor)
        .and_then(|flags| rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK))
        .map_err(|error| step("make the userfaultfd non-blocking")(error.into()))?;
    Ok(Userfaultfd::from_descriptor(descriptor))
}
