//! A blocking netlink socket for one batch of requests at a time.
//!
//! Slots are made on threads of their own, since a thread has to change its network
//! namespace to make one, and a socket belongs to the namespace in which it was opened.
//! So there is nothing to gain from an asynchronous connection: a batch is one `send`,
//! and the kernel has the answers ready when that returns.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

/// Length of `struct nlmsghdr`: length, type, flags, sequence, port.
pub(super) const HEADER_LEN: usize = 16;
/// Length of an attribute's header: length and type.
pub(super) const ATTRIBUTE_HEADER_LEN: usize = 4;

/// `NLM_F_*` of `linux/netlink.h`.
pub(super) mod flags {
    pub(in crate::network) const REQUEST: u16 = 0x1;
    pub(in crate::network) const ACK: u16 = 0x4;
    pub(in crate::network) const DUMP: u16 = 0x300;
    pub(in crate::network) const EXCLUSIVE: u16 = 0x200;
    pub(in crate::network) const CREATE: u16 = 0x400;
    pub(in crate::network) const APPEND: u16 = 0x800;
    pub(super) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(super) const ACK_CAPPED: u16 = 0x100;
    pub(super) const ACK_ATTRIBUTES: u16 = 0x200;
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The kernel's text in an extended acknowledgement.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The kernel answers within the system call; only a wedged kernel takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a listing is begun again because it changed underneath.
const DUMP_ATTEMPTS: usize = 16;

/// Why the kernel did not do what a message asked for.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The message, counted from 0, or `None` when the batch was refused as a whole.
    pub(super) message: Option<usize>,
    /// The error with the kernel's own words where it gave any.
    pub(super) error: io::Error,
}

/// An error number with the kernel's own words.
#[derive(Debug, thiserror::Error)]
#[error("{}: {text}", errno.desc())]
struct Explained {
    errno: Errno,
    text: String,
}

/// The error number of what a socket of ours returned.
pub(super) fn errno_of(error: &io::Error) -> Option<Errno> {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Explained>())
    {
        Some(explained) => Some(explained.errno),
        None => error.raw_os_error().map(Errno::from_raw),
    }
}

/// One message as it came from the kernel.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    pub(super) payload: Vec<u8>,
}

/// A socket bound to the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
}

impl NetlinkSocket {
    /// Opens a socket of a `NETLINK_*` protocol in this thread's network namespace.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        Ok(Self {
            socket,
            sequence: 1,
        })
    }

    /// Takes `count` sequence numbers and returns the first.
    pub(super) fn reserve(&mut self, count: usize) -> u32 {
        let first = self.sequence;
        self.sequence = first.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        first
    }

    /// Sends messages of which each asks for an acknowledgement, numbered from `first`,
    /// and waits for all of them. The kernel goes on after a message that it refuses;
    /// the first refusal is returned.
    pub(super) fn execute_each(
        &mut self,
        bytes: &[u8],
        first: u32,
        count: usize,
    ) -> Result<(), Refusal> {
        let whole = |error| Refusal {
            message: None,
            error,
        };
        self.socket.send(bytes, 0).map_err(whole)?;
        let mut refused: Option<Refusal> = None;
        let mut waiting = count;
        while waiting > 0 {
            for answer in self.receive().map_err(whole)? {
                let index = answer.sequence.wrapping_sub(first) as usize;
                if answer.kind != NLMSG_ERROR || index >= count {
                    continue;
                }
                waiting -= 1;
                if let (Some(error), None) = (answer.error(), &refused) {
                    refused = Some(Refusal {
                        message: Some(index),
                        error,
                    });
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Sends a transaction of `count` messages numbered from `first`, of which only the
    /// message numbered `first + acknowledged` asks for an acknowledgement. A refusal of
    /// the first message stands for the whole transaction, also when it fails at commit.
    pub(super) fn execute_batch(
        &mut self,
        bytes: &[u8],
        first: u32,
        count: usize,
        acknowledged: usize,
    ) -> Result<(), Refusal> {
        let whole = |error| Refusal {
            message: None,
            error,
        };
        self.socket.send(bytes, 0).map_err(whole)?;
        let mut refused: Option<Refusal> = None;
        loop {
            for answer in self.receive().map_err(whole)? {
                let index = answer.sequence.wrapping_sub(first) as usize;
                if answer.kind != NLMSG_ERROR || index >= count {
                    continue;
                }
                if let Some(error) = answer.error() {
                    if index == 0 {
                        return Err(refused.unwrap_or(Refusal {
                            message: None,
                            error,
                        }));
                    }
                    refused.get_or_insert(Refusal {
                        message: Some(index),
                        error,
                    });
                }
                if index == acknowledged {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Asks for one object with a message that asks for an acknowledgement too, and
    /// returns what came before that.
    pub(super) fn ask(&mut self, encode: impl Fn(u32) -> Vec<u8>) -> io::Result<Vec<Answer>> {
        let sequence = self.reserve(1);
        self.socket.send(&encode(sequence), 0)?;
        Ok(self.collect(sequence)?.unwrap_or_default())
    }

    /// Lists objects. `encode` builds the request for a sequence number; the request
    /// carries [`flags::DUMP`]. A listing that changed while it was read is begun again.
    pub(super) fn dump(&mut self, encode: impl Fn(u32) -> Vec<u8>) -> io::Result<Vec<Answer>> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.reserve(1);
            self.socket.send(&encode(sequence), 0)?;
            if let Some(answers) = self.collect(sequence)? {
                return Ok(answers);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "the listing kept changing",
        ))
    }

    /// Everything up to the end of the listing, or `None` if it was interrupted.
    fn collect(&mut self, sequence: u32) -> io::Result<Option<Vec<Answer>>> {
        let mut collected = Vec::new();
        let mut interrupted = false;
        loop {
            for answer in self.receive()? {
                if answer.sequence != sequence {
                    continue;
                }
                interrupted |= answer.flags & flags::DUMP_INTERRUPTED != 0;
                match answer.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        // Both begin with an error number, 0 when all is well. nf_tables
                        // says "interrupted" in that way too.
                        return match answer.error() {
                            Some(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
                            Some(error) => Err(error),
                            None if interrupted => Ok(None),
                            None => Ok(Some(collected)),
                        };
                    }
                    _ => collected.push(answer),
                }
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<Answer>> {
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => return Ok(split(&datagram)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Answer {
    /// The error that an acknowledgement or the end of a listing carries.
    fn error(&self) -> Option<io::Error> {
        let code = i32::from_ne_bytes(self.payload.get(..4)?.try_into().ok()?);
        if code == 0 {
            return None;
        }
        let errno = Errno::from_raw(code.wrapping_neg());
        Some(match self.kernel_text() {
            Some(text) => io::Error::new(io::Error::from(errno).kind(), Explained { errno, text }),
            None => errno.into(),
        })
    }

    fn kernel_text(&self) -> Option<String> {
        if self.kind != NLMSG_ERROR || self.flags & flags::ACK_ATTRIBUTES == 0 {
            return None;
        }
        // The refused message's header follows the error number, and its payload too
        // unless the kernel was asked to leave that out.
        let quoted = if self.flags & flags::ACK_CAPPED == 0 {
            u32::from_ne_bytes(self.payload.get(4..8)?.try_into().ok()?) as usize
        } else {
            HEADER_LEN
        };
        let attributes = self.payload.get(4 + quoted.next_multiple_of(4)..)?;
        let (_, text) = attributes_of(attributes).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?;
        Some(
            String::from_utf8_lossy(text)
                .trim_end_matches('\0')
                .to_owned(),
        )
    }
}

/// Splits a datagram into its messages. What is malformed ends the datagram.
fn split(datagram: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut rest = datagram;
    while let Some((header, _)) = rest.split_at_checked(HEADER_LEN) {
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let length = word(0) as usize;
        let Some(payload) = rest.get(HEADER_LEN..length) else {
            break;
        };
        answers.push(Answer {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            payload: payload.to_vec(),
        });
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}

/// Walks attributes: kind without its flag bits, and value.
pub(super) fn attributes_of(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = rest.get(..ATTRIBUTE_HEADER_LEN)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = rest.get(ATTRIBUTE_HEADER_LEN..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(
            u32::try_from(HEADER_LEN + payload.len())
                .unwrap()
                .to_ne_bytes(),
        );
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_datagram_is_split_into_its_messages() {
        let mut datagram = message(20, 0, 5, b"abc");
        datagram.extend(message(NLMSG_DONE, 0, 5, &0_i32.to_ne_bytes()));
        let answers = split(&datagram);
        assert_eq!(answers.len(), 2);
        assert_eq!(
            (answers[0].kind, answers[0].payload.as_slice()),
            (20, b"abc".as_slice())
        );
        assert!(answers[1].error().is_none());
    }

    #[test]
    fn a_truncated_datagram_gives_its_whole_messages() {
        let mut datagram = message(20, 0, 5, b"abcd");
        datagram.extend(&message(20, 0, 6, b"efgh")[..18]);
        assert_eq!(split(&datagram).len(), 1);
        for length in 0..datagram.len() {
            split(&datagram[..length]);
        }
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let mut payload = (-(Errno::ENOENT as i32)).to_ne_bytes().to_vec();
        payload.extend(message(0, 0, 0, b""));
        payload.extend(13_u16.to_ne_bytes());
        payload.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        payload.extend(b"no table\0");
        let flags = flags::ACK_CAPPED | flags::ACK_ATTRIBUTES;
        let answers = split(&message(NLMSG_ERROR, flags, 1, &payload));
        let error = answers[0].error().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(errno_of(&error), Some(Errno::ENOENT));
        assert!(error.to_string().ends_with(": no table"), "{error}");
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_walk() {
        assert_eq!(attributes_of(&[3, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
        assert_eq!(attributes_of(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attributes_of(&[0, 0]).count(), 0);
    }
}
