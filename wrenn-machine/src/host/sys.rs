//! Kernel interfaces that the probes try and no safe wrapper in use covers.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

/// linux/netfilter/nfnetlink.h: NFNL_SUBSYS_NFTABLES, and NFT_MSG_GETGEN of nf_tables.h.
const ASK_GENERATION: u16 = (10 << 8) | 16;
/// linux/netlink.h: NLM_F_REQUEST.
const REQUEST: u16 = 1;
/// linux/netlink.h: the message type of errors.
const ERROR: u16 = 2;
const HEADER: usize = 16;

/// Makes a userfaultfd and closes it.
pub(super) fn open_userfaultfd() -> io::Result<()> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: no memory is registered with the descriptor, which is closed here, so it
    // changes nothing for any access to memory.
    let descriptor = unsafe { userfaultfd(flags) }?;
    drop(descriptor);
    Ok(())
}

/// Asks nf_tables for the number of its present generation, which changes nothing.
pub(super) fn ask_nftables() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let length = u32::try_from(HEADER + 4).map_err(io::Error::other)?;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(ASK_GENERATION.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence and port number, then family, version and resource: all zero.
    message.extend([0; 12]);
    sendto(
        socket.as_raw_fd(),
        &message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    read_answer(&answer[..length])
}

fn read_answer(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).ok_or(io::ErrorKind::UnexpectedEof)?;
    if u16::from_ne_bytes([kind[0], kind[1]]) != ERROR {
        return Ok(());
    }
    let code = answer
        .get(HEADER..HEADER + 4)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
        0 => Ok(()),
        negative => Err(io::Error::from_raw_os_error(-negative)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_kernel_are_told_from_answers() {
        let mut message = vec![0; HEADER + 4];
        message[4..6].copy_from_slice(&ASK_GENERATION.to_ne_bytes());
        assert!(read_answer(&message).is_ok());
        message[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        assert!(read_answer(&message).is_ok(), "zero acknowledges");
        message[HEADER..].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(
            read_answer(&message).unwrap_err().raw_os_error(),
            Some(libc::EPERM)
        );
        assert!(read_answer(&message[..3]).is_err());
    }
}
